"""What tests stand on that is no test of its own."""
