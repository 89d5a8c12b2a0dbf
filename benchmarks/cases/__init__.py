"""The models that the loops are timed on, as recipes."""
