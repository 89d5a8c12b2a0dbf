"""Training: ranks, mesh, loop, checkpoints, and the folder that a run leaves."""
