"""Where ranks that this process starts itself meet: a store that listens on loopback alone.

torch's own rendezvous of one host listens on every interface of it, and asks nobody who he is.
"""

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from armillary.train.launchers.address import LOCAL_ADDRESS

BACKEND = "armillary-loopback"
TIMEOUT = timedelta(minutes=10)


class OwnStore(RendezvousHandler):
    """The rendezvous of one agent with itself; its ranks meet at the store that it serves."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._store: TCPStore | None = None

    def get_backend(self) -> str:
        """The name that it is registered under."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """The ranks meet at this store, and make none of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """This agent alone, with a store of its own for every start of the ranks."""
        listener = socket.create_server((LOCAL_ADDRESS, 0))
        port = int(listener.getsockname()[1])
        self._store = TCPStore(
            LOCAL_ADDRESS,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=TIMEOUT,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOCAL_ADDRESS, port))

    def is_closed(self) -> bool:
        """Never: nobody else could join."""
        return False

    def set_closed(self) -> None:
        """Nothing is to be told to anybody."""

    def num_nodes_waiting(self) -> int:
        """None: nobody else could join."""
        return 0

    def get_run_id(self) -> str:
        """The run's own name."""
        return self._run_id

    def shutdown(self) -> bool:
        """The store ends with this process."""
        return True


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return OwnStore(parameters.run_id)


def register() -> str:
    """The name of this rendezvous, after torch was told of it."""
    rendezvous_handler_registry.register(BACKEND, _create)
    return BACKEND
