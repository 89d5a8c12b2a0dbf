"""Laws of convolutions, recurrent steps and replicas: more device is never slower."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary import machines
from armillary.axes import discover
from armillary.core import compute
from armillary.models import references
from armillary.plan import software
from armillary.plan.grid import Grid
from armillary.plan.price import Priced, price
from armillary.spec import Layout

RATES = compute.Rates(
    peak_flops_per_s=312e12,
    memory_bytes_per_s=2.0e12,
    element_bytes=2.0,
    matmul_start_s=4.5e-6,
    matmul_fraction=0.9,
    matmul_memory_fraction=0.7,
    half_rows=127.0,
    half_columns=143.0,
    half_inner=88.0,
    attention_fraction=0.5,
    stream_fraction=0.75,
    launch_s=5e-6,
    scan_step_s=5e-5,
)
SIZES = st.tuples(*[st.integers(1, 20000)] * 3)
FLOPS, BYTES = st.floats(1e6, 1e14), st.floats(1e3, 1e11)
TAPS = st.floats(0.5, 400.0)


@given(FLOPS, SIZES, BYTES, TAPS, st.booleans(), st.floats(1.0, 100.0))
def test_a_better_device_is_never_slower_and_more_work_never_faster(
    flops: float,
    sizes: tuple[int, int, int],
    moved: float,
    taps: float,
    is_depthwise: bool,
    times: float,
) -> None:
    def seconds(f: float, b: float, rates: compute.Rates) -> float:
        found = compute.convolution_s(f, sizes, b, taps, rates, is_depthwise=is_depthwise)
        return float(found)

    one = seconds(flops, moved, RATES)
    for what in ("peak_flops_per_s", "memory_bytes_per_s", "convolution_fraction"):
        assert seconds(flops, moved, RATES.scaled(**{what: times})) <= one
    assert seconds(flops * times, moved, RATES) >= one
    assert seconds(flops, moved * times, RATES) >= one
    assert one > RATES.matmul_start_s


@given(FLOPS, SIZES, TAPS)
def test_the_order_of_the_sizes_is_nothing(
    flops: float, sizes: tuple[int, int, int], taps: float
) -> None:
    found = compute.convolution_s(flops, sizes, 1.0, taps, RATES)
    turned = compute.convolution_s(flops, (sizes[1], sizes[2], sizes[0]), 1.0, taps, RATES)
    assert float(found) == pytest.approx(float(turned))


@given(TAPS)
def test_only_products_in_full_are_fewer(taps: float) -> None:
    assert float(compute.fewer_multiplications(taps, False)) == 1.0
    assert float(compute.fewer_multiplications(taps, True)) >= 1.0


def test_three_by_three_and_long_kernels_are_fewer_and_other_ones_are_not() -> None:
    taps = np.array([1.0, 2.25, 9.0, 11.0, 25.0, 27.0, 49.0])
    found = compute.fewer_multiplications(taps, True)
    w, f = compute.WINOGRAD_FACTOR, compute.FOURIER_FACTOR
    assert found.tolist() == [1.0, 1.0, w, f, f, 1.0, 1.0]


@given(st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_one_replica_waits_for_none_and_more_never_wait_less(ranks: int, spread: float) -> None:
    assert float(compute.slowest_of(1, spread)) == 0.0
    assert compute.slowest_of(ranks + 1, spread) >= compute.slowest_of(ranks, spread)


@given(st.integers(1, 4096), SIZES)
def test_a_step_of_a_recurrent_layer_has_a_least_time(
    steps: int, sizes: tuple[int, int, int]
) -> None:
    assert compute.scan_s(steps, *sizes, RATES) >= steps * RATES.scan_step_s


@pytest.mark.parametrize(
    ("source", "year", "name"),
    [
        ("dle | a | DeepLearningExamples PyTorch/Detection | cnn", 2021, "conv-torch-2021"),
        ("dle | a | TensorFlow2/Segmentation | cnn", 2021, "conv-tensorflow-2021"),
        ("mlperf-v5.0 | a | training results | other", 2025, "conv-tuned-2024"),
        ("dlperf | a | reports | cnn", 2020, "conv-graph-2020"),
    ],
)
def test_the_software_of_a_network_follows_from_its_framework_and_year(
    source: str, year: int, name: str
) -> None:
    assert software.of_source("", source, year).name == name


def _priced(replicas: int, program: str) -> Priced:
    """ResNet-50 with 256 images on each of so many V100s."""
    layout = Layout(degrees={"data": replicas}, precision="float16")
    machine = machines.for_run("V100-SXM2-16GB", 8, "", 8)
    return price(
        references.load("resnet50"),
        machine,
        software.load(program),
        Grid.of(layout, tuple(discover()), 256),
        global_batch_size=256 * replicas,
    )


def test_a_lone_replica_neither_agrees_nor_waits() -> None:
    alone, many = (_priced(n, "conv-tensorflow-2021") for n in (1, 8))
    assert float(alone.terms["slowest replica"].ravel()[0]) == 0.0
    assert float(alone.terms["step"].ravel()[0]) == 0.0
    assert float(many.terms["slowest replica"].ravel()[0]) > 0.0
    assert float(many.terms["step"].ravel()[0]) == pytest.approx(9.1e-3)


def test_a_convolution_moves_its_input_once() -> None:
    """An input held once for each tap would take nine times as long as ResNet-50 was measured."""
    step_s = float(_priced(1, "conv-graph-2020").step_s.ravel()[0])
    assert step_s == pytest.approx(0.179, rel=0.25)  # DLPerf: 0.174 s and 0.184 s
