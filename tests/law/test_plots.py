"""Laws of numbers in words, and of curves in a terminal and on a page."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.plan.figure import Trace, figure
from armillary.plan.plot import Curve, Scale, plot, tick
from armillary.spec.quantities import count, device_time, energy, short, size, span

POSITIVE = st.floats(1e-9, 1e12)
POINTS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=30)


@given(POSITIVE, POSITIVE)
def test_a_scale_keeps_order_and_holds_its_ends(low: float, high: float) -> None:
    scale = Scale.over([low, high])
    assert 0 <= scale.place(low) <= 1 and 0 <= scale.place(high) <= 1
    assert (low < high) <= (scale.place(low) <= scale.place(high))
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6 and ticks == sorted(ticks)
    assert all(-0.02 <= scale.place(value) <= 1.02 for value in ticks)


@given(POINTS)
def test_a_plot_has_the_size_it_was_asked_for(pairs: list[tuple[float, float]]) -> None:
    x, y = zip(*pairs, strict=True)
    text = plot([Curve(x=x, y=y), Curve(x=x[:1], y=y[:1], mark="●")], x_label="x", y_label="y")
    lines = text.plain.split("\n")
    assert len(lines) == 1 + 13 + 2
    assert "●" in text.plain
    body = lines[1:-2]
    assert len({len(line) for line in body}) == 1


def test_a_line_goes_down_where_its_values_do() -> None:
    text = plot([Curve(x=[1, 10, 100], y=[100, 10, 1])], x_label="x", y_label="y").plain
    rows = [i for i, line in enumerate(text.split("\n")) if any(ord(c) > 0x2800 for c in line)]
    columns = [
        min(i for i, c in enumerate(line) if 0x2800 < ord(c) < 0x2900)
        for line in text.split("\n")
        if any(0x2800 < ord(c) < 0x2900 for c in line)
    ]
    assert len(rows) > 8 and columns == sorted(columns)


def test_what_cannot_be_on_a_logarithmic_axis_is_left_out() -> None:
    text = plot([Curve(x=[0, 1, math.inf], y=[1, 1, 1], mark="x")], x_label="a", y_label="b").plain
    assert text.count("x") == 1


@given(POINTS)
def test_a_figure_is_sound_xml_with_a_point_for_each_value(
    pairs: list[tuple[float, float]],
) -> None:
    x, y = zip(*pairs, strict=True)
    trace = Trace(x=x, y=y, kind="first", told=["<&>"] * len(x))
    for log_y in (True, False):
        drawn = figure([trace], x_label="devices", y_label="<s>", log_y=log_y)
        root = ElementTree.fromstring(drawn)
        assert len(root.findall("circle")) == len(pairs)
        for circle in root.findall("circle"):
            assert -10 <= float(circle.get("cx", "nan")) <= 340
            assert -10 <= float(circle.get("cy", "nan")) <= 230


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (span(0), "0 s"),
        (span(3.2e-6), "3.20 µs"),
        (span(0.0123), "12.3 ms"),
        (span(12.34), "12.3 s"),
        (span(250), "4 min 10 s"),
        (span(3 * 3600 + 240), "3 h 04 min"),
        (span(5 * 86400 + 3 * 3600), "5 d 3 h"),
        (span(math.inf), "–"),
        (size(3 * 2**30), "3.00 GiB"),
        (count(174_615_846_912), "175 billion"),
        (count(5120), "5,120"),
        (energy(830.0), "830 J"),
        (energy(24_400.0), "24.4 kJ"),
        (energy(7.2e6), "2.00 kWh"),
        (energy(7.2e9), "2.00 MWh"),
        (device_time(0.5 / 3600), "500 ms"),
        (device_time(2.5), "2.50 h"),
        (short(0.000012345), "1.23e−5"),
        (tick(2000.0), "2,000"),
        (tick(0.5), "0.5"),
    ],
)
def test_numbers_in_words(said: str, words: str) -> None:
    assert said == words


@given(st.floats(1e-7, 1e9))
def test_a_longer_time_never_has_a_smaller_unit(seconds: float) -> None:
    units = ["µs", "ms", "s", "min", "h", "d"]

    def rank(text: str) -> int:
        return max(units.index(word) for word in text.split() if word in units)

    assert rank(span(seconds)) <= rank(span(seconds * 10))
