"""All-reduces of NCCL measured on 2 nodes of 4 GH200 of Alps, against ours.

Theirs: CSCS documentation, docs/software/communication/nccl.md (eth-cscs/cscs-docs, 2026),
nccl-tests 2.17.1, all_reduce_perf -b 8 -e 128M -f 2, out of place, microseconds. The numbers of
`networks/middleware.py` for Slingshot were chosen on this table, so it is a calibration, and held
here so that it stays one.
"""

import numpy as np
import pytest

from armillary import machines, networks
from armillary.networks import Burst, contended_seconds

MEASURED_US = {
    8: 17.93, 16: 17.65, 32: 17.54, 64: 19.27, 128: 18.86, 256: 18.83, 512: 19.72, 1024: 20.35,
    2048: 22.07, 4096: 31.97, 8192: 37.21, 16384: 37.29, 32768: 39.61, 65536: 61.03,
    131072: 81.41, 262144: 127.0, 524288: 170.3, 1048576: 164.3, 2097152: 182.1, 4194304: 292.7,
    8388608: 344.5, 16777216: 461.7, 33554432: 686.5, 67108864: 1090.5, 134217728: 1916.4,
}  # fmt: skip


def errors() -> dict[int, float]:
    alps = machines.load("alps")
    sizes = np.array(sorted(MEASURED_US), np.float64)
    ours = networks.seconds(alps, "all_reduce", sizes, [(8, 1)])
    return {
        int(size): float(found) * 1e6 / MEASURED_US[int(size)] - 1
        for size, found in zip(sizes, ours, strict=True)
    }


@pytest.mark.parametrize("size", [8, 65536, 1048576, 134217728])
def test_the_named_sizes_are_met(size: int) -> None:
    assert abs(errors()[size]) < 0.15


def test_most_sizes_are_met_and_none_is_far_off() -> None:
    """Theirs is flat from 512 KiB to 2 MiB, as no rate and latency are: up to a third off there."""
    every = np.abs(list(errors().values()))
    assert np.median(every) < 0.05
    assert (every < 0.155).sum() >= 21
    assert every.max() < 0.35


@pytest.mark.parametrize("size", [8, 65536, 1048576, 134217728])
def test_flow_by_flow_it_is_the_same(size: int) -> None:
    alps = machines.load("alps")
    burst = Burst(collective="all_reduce", bytes=float(size), spans=((8, 1),))
    found = contended_seconds(alps, [burst], num_ranks=8).seconds[0] * 1e6
    assert found == pytest.approx(MEASURED_US[size], rel=0.15)
