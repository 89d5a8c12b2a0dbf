"""Where the ranks meet: the address and port of rank 0, each with its source."""

import zlib
from typing import TYPE_CHECKING

from armillary.spec import SpecError

if TYPE_CHECKING:
    from armillary.train.launchers.place import Hosts, Launcher, Variables

FIRST_PORT, NUM_PORTS = 20000, 12000
"""Below 32768, where Linux begins to hand out ports by itself. Source: Linux, Documentation/
networking/ip-sysctl.rst, ip_local_port_range."""
USUAL_PORT = 29500
"""Source: torch.distributed.run, default of --master-port."""
LOCAL_ADDRESS = "127.0.0.1"


def meeting_point(
    launcher: "Launcher", variables: "Variables", hosts: "Hosts", *, is_on_one_node: bool
) -> tuple[tuple[str, str], tuple[int, str]]:
    """((address, source), (port, source)), equal on every rank of a launcher's world.

    Raises: `SpecError` if the ranks are on several nodes and nothing names the first.
    """
    return _address(launcher, variables, hosts, is_on_one_node), _port(launcher, variables)


def _address(
    launcher: "Launcher", variables: "Variables", hosts: "Hosts", is_on_one_node: bool
) -> tuple[str, str]:
    if variables.get("MASTER_ADDR"):
        return variables["MASTER_ADDR"], "MASTER_ADDR"
    if is_on_one_node:
        return LOCAL_ADDRESS, "all ranks are on this node"
    names, source = hosts
    if names:
        return names[0], f"first node of {source}"
    raise SpecError(
        "launcher.master_address",
        f"MASTER_ADDR is not set, and {launcher.name} does not tell which node has rank 0",
        "ranks on several nodes meet at an address of rank 0's node (train/launchers/address.py)",
        "export MASTER_ADDR with the name of that node, the same for every rank",
    )


def _port(launcher: "Launcher", variables: "Variables") -> tuple[int, str]:
    """A port of the job's own, so that two jobs on one node do not meet each other."""
    text = variables.get("MASTER_PORT")
    if text:
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise SpecError(
                "launcher.master_port",
                f"MASTER_PORT={text!r}",
                "a port is a number from 1 to 65535",
                "set MASTER_PORT right, or unset it",
            )
        return int(text), "MASTER_PORT"
    told = [name for name in launcher.job if name in variables]
    if not told:
        return USUAL_PORT, "torch's usual port"
    job = "/".join(variables[name] for name in told).encode()
    return FIRST_PORT + zlib.crc32(job) % NUM_PORTS, f"made from {' and '.join(told)}"
