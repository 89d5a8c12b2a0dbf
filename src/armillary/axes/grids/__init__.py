"""Convolutions and their like on a grid that is cut: rows of the neighbours, sums over all."""
