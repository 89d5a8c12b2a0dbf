"""A switch inside a node: each rank reaches each other at its full rate (NVLink with NVSwitch)."""

from armillary.networks.crossbar import Crossbar

NETWORK = Crossbar(
    name="switch",
    # What large all-gathers and reduce-scatters over 8 tend to, pieces taken off: A100 217 and 227
    # of 300 GB/s, H100 370 and 347 of 450.
    fraction=0.78,
    source="NCCL tables of aiconfigurator-core 0.12.0, fits of A100 and H100, 8 ranks",
)
