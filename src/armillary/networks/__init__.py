"""Topologies and what collectives cost on them: one file = one topology, found by discovery."""

from armillary.networks.burst import Burst, Contended, LevelLoad
from armillary.networks.contended import contended_seconds
from armillary.networks.discovery import discover
from armillary.networks.door import Network, Pattern
from armillary.networks.price import Term, explain, seconds

__all__ = [
    "Burst",
    "Contended",
    "LevelLoad",
    "Network",
    "Pattern",
    "Term",
    "contended_seconds",
    "discover",
    "explain",
    "seconds",
]
