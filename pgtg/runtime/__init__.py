"""What a run computes on."""
