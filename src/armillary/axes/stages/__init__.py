"""What the pipeline axis stands on: stages of a module, and the order in which they run."""
