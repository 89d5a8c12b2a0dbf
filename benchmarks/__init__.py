"""How fast Armillary is beside what it stands on: `python -m benchmarks` writes the figures."""
