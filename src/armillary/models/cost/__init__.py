"""Watching a step of a model without running it: every op forward and backward, by its sizes."""
