"""Science cases: one file each, written as a user would, on the public API only."""
