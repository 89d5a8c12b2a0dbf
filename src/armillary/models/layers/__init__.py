"""Layers as numbers: what torch would hold, run and keep, by sizes alone and without torch."""
