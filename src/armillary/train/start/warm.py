"""The server that ranks are forked from, begun early: it imports torch while this process does."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from armillary.step.workers import held_back
from armillary.train.launchers import find_here

PRELOADED = ["torch._dynamo", "armillary.train.rank"]
"""What every rank needs, imported once; torch's optimisers import torch._dynamo when made."""


def warm_up(num_ranks: int) -> None:
    """Begin the server that own ranks will be forked from, and return at once.

    The server never meets a signal to stop that is sent to all of a group: without it nobody could
    tell how its ranks ended. A rank lets them through again (`let_through`).

    Nothing is begun where a launcher started this process, or where it will be the only rank.
    """
    if num_ranks == 1 or find_here() is not None:
        return
    multiprocessing.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # which would let signals through again
    with loopback(), held_back():
        forkserver.ensure_running()


@contextmanager
def loopback() -> Iterator[None]:
    """Have gloo use the loopback interface: all ranks are on this host, whatever its name says."""
    variable = "GLOO_SOCKET_IFNAME"
    name = "lo" if Path("/sys/class/net/lo").exists() else "lo0"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = name
    try:
        yield
    finally:
        del os.environ[variable]
