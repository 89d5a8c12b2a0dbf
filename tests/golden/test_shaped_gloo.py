"""gloo over a link of 12.5 MB/s and 4 ms one way, as measured on two nodes (`docs/networks.md`)."""

import pytest

from armillary import networks
from tests.contract import small_machines as small

SIZES = (1 << 16, 1 << 18, 1 << 20, 1 << 22)
MEASURED_MS = {  # the least of 4 to 7; tests/story/test_shaped_network.py measures some of it again
    "all_reduce": (23.1, 38.0, 102.3, 355.5),
    "reduce_scatter_tensor": (23.3, 38.9, 103.0, 359.4),
    "all_gather_into_tensor": (11.45, 19.7, 52.0, 178.6),
    "broadcast": (13.95, 29.8, 93.25, 346.1),
}


@pytest.mark.parametrize("collective", MEASURED_MS)
def test_a_collective_takes_what_was_measured(collective: str) -> None:
    link = small.level("machine", 2, "fat_tree", 12.5e6, latency_s=0.004, shape={"fraction": 1.0})
    machine = small.machine([link], 1, "gloo")
    ours_ms = 1e3 * networks.seconds(machine, collective, list(SIZES), [(2, 1)])
    assert ours_ms.tolist() == pytest.approx(MEASURED_MS[collective], rel=0.09)
