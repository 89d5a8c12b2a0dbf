"""Armillary's `plan` beside other planners: `python -m benchmarks.planners` prints the table."""
