"""Where ranks that a launcher started meet: rank 0 listens on one address, and all connect to it.

torch would listen on every interface of rank 0's node; here it is the address that was agreed on.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from armillary.spec import SpecError
from armillary.step.seat import Seat
from armillary.train.launchers import Place
from armillary.train.start.again import agent_serves, meet_anew

if TYPE_CHECKING:
    from torch.distributed import TCPStore

BACKLOG = 4096
"""Connections that may wait. Source: Linux, ip-sysctl.rst, the default of net.core.somaxconn, to
which a larger number is cut."""
LEFT = "armillary/left"
LINGER_S = 5.0


def seat_of(place: Place | None) -> Seat:
    """Where this process joins the process group, as `armillary.step.world.join` takes it."""
    if place is not None and place.world_size > 1 and agent_serves(place):
        return Seat(
            local_rank=place.local_rank,
            rank=place.rank,
            world_size=place.world_size,
            store=meet_anew(place),
        )
    if place is None or place.has_store:
        return Seat.of_torch(os.environ)
    return Seat(
        local_rank=place.local_rank,
        rank=place.rank,
        world_size=place.world_size,
        meeting=f"tcp://{place.master_address}:{place.master_port}",
    )


@contextlib.contextmanager
def serving(place: Place) -> Iterator["TCPStore | None"]:
    """The store that all ranks meet at, served while the context lasts; None on other ranks.

    Raises: `SpecError` if the address is not this node's, or its port is taken.
    """
    if place.has_store or place.rank != 0:
        yield None
        return
    import torch.distributed as dist

    listener = _listen(place)
    store = dist.TCPStore(
        place.master_address,
        place.master_port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # the process group takes the same server, not another on the port
        master_listen_fd=listener.detach(),
    )
    yield store


def refuse_unknown_address(place: Place) -> None:
    """Refuse a master address that this node cannot look up: torch would wait for it in vain.

    Raises: `SpecError` with the address and what named it.
    """
    if not place.has_store:
        _resolve(place.master_address, place.sources["master_address"])


def linger(store: "TCPStore | None", place: Place) -> None:
    """Go on serving for a moment after an error, until all ranks have agreed on who tells it.

    Ranks that fail of the same ask the store; where it is gone, each of them would tell.
    """
    give_up_s = time.monotonic() + LINGER_S
    while store is not None and store.add(LEFT, 0) < place.world_size:
        if time.monotonic() > give_up_s:
            return
        time.sleep(0.02)


def _listen(place: Place) -> socket.socket:
    """A socket that listens on the address of `place`."""
    where, source = place.master_address, place.sources["master_address"]
    family, address = _resolve(where, source)
    if ipaddress.ip_address(address).is_loopback and not place.is_on_one_node:
        # Some systems give a node's own name a loopback address, which no other node reaches.
        address = "::" if family == socket.AF_INET6 else "0.0.0.0"
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, place.master_port))
    except OSError as error:
        listener.close()
        raise _refusal(error, place, address) from None
    listener.listen(BACKLOG)
    return listener


def _resolve(where: str, source: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(where, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SpecError(
            "launcher.master_address",
            f"{where!r} ({source}) cannot be resolved: {error.strerror or error}",
            "every rank can look up the name of rank 0's node (train/start/rendezvous.py)",
            "export MASTER_ADDR with an address that all nodes know",
        ) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return found[0][0], str(found[0][4][0])


def _refusal(error: OSError, place: Place, address: str) -> SpecError:
    """What a person can do about an address that cannot be listened on."""
    named = f"{place.master_address} ({place.sources['master_address']})"
    if error.errno == errno.EADDRNOTAVAIL:
        return SpecError(
            "launcher.master_address",
            f"rank 0 is on {place.node}, which has not the address {address} of {named}",
            "the ranks meet on rank 0's node (train/start/rendezvous.py)",
            "export MASTER_ADDR with the name of the node that rank 0 is on",
        )
    return SpecError(
        "launcher.master_port",
        f"port {place.master_port} of {named} cannot be listened on: {error.strerror}",
        "rank 0 listens on a port that no other program has (train/start/rendezvous.py)",
        "export another MASTER_PORT, the same for every rank",
    )
