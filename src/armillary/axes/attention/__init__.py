"""Attention over tensors that are cut: by samples and heads, by a ring, or by exchanged heads."""
