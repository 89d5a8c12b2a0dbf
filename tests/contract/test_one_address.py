"""Do the stores that ranks meet at listen on the address that was agreed on, and on no other?

On Linux all of 127.0.0.0/8 is this host: a store that listens on every address answers at
127.0.0.2, one that listens on 127.0.0.1 does not.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from armillary.step.meeting import own_store
from armillary.train.launchers import find
from armillary.train.start.own_store import OwnStore, register
from armillary.train.start.rendezvous import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's loopback network")
TORCH = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(address: str, port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(5)
        return caller.connect_ex((address, port)) == 0


@contextmanager
def of_own_ranks() -> Iterator[int]:
    handler = OwnStore("run")
    info = handler.next_rendezvous().bootstrap_store_info
    assert info is not None
    yield info.master_port


@contextmanager
def of_a_launcher() -> Iterator[int]:
    port = free_port()
    variables = {
        "PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    place = find(variables)
    assert place is not None
    with serving(place) as store:
        assert store is not None
        yield port


@contextmanager
def of_torchs_variables() -> Iterator[int]:
    port = free_port()
    store = own_store(TORCH | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
    assert store is not None
    yield port


@pytest.mark.parametrize("served", [of_own_ranks, of_a_launcher, of_torchs_variables])
def test_a_store_is_on_one_address(served: Callable[[], Iterator[int]]) -> None:
    with served() as port:  # type: ignore[attr-defined]
        assert answers("127.0.0.1", port)
        assert not answers("127.0.0.2", port)


def test_a_store_on_all_addresses_would_be_seen() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert answers("127.0.0.2", int(listener.getsockname()[1]))


def test_who_does_not_serve() -> None:
    here = TORCH | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    assert own_store(here | {"RANK": "1"}) is None
    assert own_store(here | {"TORCHELASTIC_USE_AGENT_STORE": "True"}) is None
    assert own_store(here | {"LOCAL_WORLD_SIZE": "1"}) is None, "nobody else could reach it"
    assert own_store(here | {"MASTER_ADDR": "192.0.2.1"}) is None, "an address of another node"
    assert own_store({}) is None


def test_the_agent_is_told_once_and_again() -> None:
    assert register() == register() == OwnStore("run").get_backend()
