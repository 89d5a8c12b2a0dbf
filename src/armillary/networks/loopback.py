"""Processes of one computer that talk over its memory: what one sends, the others wait for."""

from armillary.networks.crossbar import Crossbar

NETWORK = Crossbar(
    name="loopback",
    # `link_bytes_per_s` is what the memory gives one rank when all are at it.
    fraction=1.0,
    source="the link's rate is measured with all ranks at it (docs/networks.md)",
)
