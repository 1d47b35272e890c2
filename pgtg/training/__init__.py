"""One loop for all training: updates, state, schedule."""
