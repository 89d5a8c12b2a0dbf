"""The store that ranks meet at by torch's own variables, served on one address and not on all.

torch's store asks nobody who he is: whoever reaches its port can read and change what ranks agree
on. It would listen on every interface of the node of rank 0; here it is that of MASTER_ADDR.
"""

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore


def own_store(variables: Mapping[str, str]) -> "TCPStore | None":
    """The store that this process has to serve as rank 0, for as long as it is kept.

    None where it is not rank 0, torch's agent serves the store, MASTER_ADDR is not an address of
    this node, or it is a loopback address while ranks are on other nodes too (some systems call a
    node by one): then torch does what it does.
    """
    wanted = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    is_ours = variables.get("RANK") == "0" and all(name in variables for name in wanted)
    if not is_ours or variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listener = _listen(variables["MASTER_ADDR"], int(variables["MASTER_PORT"]))
    if listener is None:
        return None
    is_on_one_node = variables.get("LOCAL_WORLD_SIZE") == variables["WORLD_SIZE"]
    address = str(listener.getsockname()[0])
    if (address == "::1" or address.startswith("127.")) and not is_on_one_node:
        listener.close()
        return None
    from torch.distributed import TCPStore

    return TCPStore(
        variables["MASTER_ADDR"],
        int(variables["MASTER_PORT"]),
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # the process group takes the same server, not another on the port
        master_listen_fd=listener.detach(),
    )


def _listen(host: str, port: int) -> socket.socket | None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(found[0][4][:2], family=found[0][0])
    except OSError:
        return None
