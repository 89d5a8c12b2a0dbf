"""Fitting the planner's constants to measured runs: which there are, how rows depend on them."""
