"""The topologies by name: every file of this room that defines `NETWORK`."""

import importlib
import pkgutil
import sys
from functools import cache

from armillary.networks.door import Network
from armillary.spec import SpecError, nearest


@cache
def discover() -> dict[str, Network]:
    """The topologies by name: every file of this room that defines `NETWORK`."""
    found = {}
    room = __name__.rpartition(".")[0]
    for entry in pkgutil.iter_modules(sys.modules[room].__path__):
        module = importlib.import_module(f"{room}.{entry.name}")
        if hasattr(module, "NETWORK"):
            found[module.NETWORK.name] = module.NETWORK
    return found


def network(name: str, where: str) -> Network:
    """The topology called `name`.

    Raises: `SpecError` at `where` if there is none.
    """
    found = discover()
    if name not in found:
        raise SpecError(
            where,
            f"no topology called {name!r}",
            f"the topologies are {', '.join(sorted(found))}",
            nearest(name, found),
        )
    return found[name]
