"""Which layout a model should have on a machine: enumerate, refuse, price, rank."""
