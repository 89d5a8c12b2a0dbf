"""A whole machine's step, before it is paid for: the program of its ranks, and its events."""
