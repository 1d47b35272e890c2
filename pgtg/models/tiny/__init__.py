"""Tiny models made on the spot, for quickstarts and tests."""
