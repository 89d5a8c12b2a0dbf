"""What a machine's file says that ranks would reach, to be held beside what they do reach."""

from armillary.machines import load, resized
from armillary.networks import seconds
from armillary.spec import SpecError


def expected_bytes_per_s(
    machine: str, num_nodes: int, ranks_per_node: int, reduced_bytes: int, sent_bytes: int
) -> tuple[str, float, float]:
    """(the machine's title, bytes/s each rank moves in an all_reduce of all ranks, of one send).

    The send is between nodes, or within the node where there is one. An all_reduce of n ranks
    moves 2 (n - 1) / n of its bytes over each rank's link.

    Raises: `SpecError` on a machine we have not, or one that is smaller than the allocation.
    Source: nccl-tests, doc/PERFORMANCE.md, for the bytes moved.
    """
    whole = load(machine)
    if num_nodes > whole.num_nodes:
        raise SpecError(
            "machine",
            f"{whole.title or whole.name} has {whole.num_nodes} nodes, the allocation {num_nodes}",
            "an allocation is compared with the machine that it is part of",
            "name that machine with --machine (`armillary machines`)",
        )
    part = resized(whole, num_nodes, ranks_per_node)
    count = num_nodes * ranks_per_node
    reduce_s = float(seconds(part, "all_reduce", reduced_bytes, [(count, 1)]))
    stride = ranks_per_node if num_nodes > 1 else 1
    send_s = float(seconds(part, "send", sent_bytes, [(2, stride)]))
    moved_bytes = 2 * (count - 1) / count * reduced_bytes
    return whole.title or whole.name, moved_bytes / reduce_s, sent_bytes / send_s
