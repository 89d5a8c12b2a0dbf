"""Topologies and what collectives cost on them: one file = one topology, found by discovery."""

from armillary.networks.discovery import discover
from armillary.networks.door import Network, Pattern
from armillary.networks.price import Term, explain, seconds

__all__ = ["Network", "Pattern", "Term", "discover", "explain", "seconds"]
