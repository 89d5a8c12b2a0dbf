"""Topologies and what collectives cost on them: one file = one topology, found by discovery."""

from armillary.networks.discovery import discover
from armillary.networks.door import Network, Pattern
from armillary.networks.groups import Groups
from armillary.networks.price import Fares, Term, Times, explain, seconds

__all__ = [
    "Fares",
    "Groups",
    "Network",
    "Pattern",
    "Term",
    "Times",
    "discover",
    "explain",
    "seconds",
]
