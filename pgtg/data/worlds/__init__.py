"""Generated worlds whose ground truth is known."""
