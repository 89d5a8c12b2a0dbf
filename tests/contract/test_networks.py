"""Does every discovered topology keep its promise, and is one file enough for a new one?"""

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from armillary import networks
from armillary.networks import Pattern
from armillary.networks.discovery import discover
from armillary.networks.middleware import WAYS
from armillary.spec import SpecError
from tests.contract import small_machines as small

NAMES = sorted(discover())
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
COLLECTIVES = sorted(WAYS["NCCL"])


@pytest.mark.parametrize("name", NAMES)
def test_a_network_says_who_it_is(name: str) -> None:
    network = discover()[name]
    assert network.name == name
    assert 0 < network.fraction <= 1
    assert network.step_factor >= 1
    assert 0 <= network.pieces <= 1
    assert len(network.source.split()) > 2
    assert inspect.getdoc(type(network))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_rates_are_those_of_the_link_at_most_and_grow_with_it(name: str, pattern: Pattern) -> None:
    network = discover()[name]
    units = np.array([2.0, 3.0, 8.0, 64.0])
    slow, fast = (
        network.bytes_per_s(small.level("machine", 64, name, rate, taper=2.0), pattern, units, 64.0)
        for rate in (1e10, 3e10)
    )
    assert slow.shape == fast.shape == units.shape
    assert (slow > 0).all()
    assert (slow <= 1e10).all()
    assert (fast >= slow).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_taper_never_speeds_up_and_a_step_is_one_hop_at_least(name: str) -> None:
    network = discover()[name]
    units = np.array([2.0, 5.0, 64.0])
    for pattern in PATTERNS:
        full, tapered = (
            network.bytes_per_s(
                small.level("machine", 64, name, 1e10, taper=taper), pattern, units, 64.0
            )
            for taper in (1.0, 4.0)
        )
        assert (tapered <= full).all()
        level = small.level("machine", 64, name, 1e10)
        assert (network.num_hops(level, pattern, units, 64.0) >= 1).all()


@pytest.mark.parametrize("backend", ["nccl", "xccl", "gloo"])
@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_every_collective_has_a_price_on_it(name: str, collective: str, backend: str) -> None:
    levels = [
        small.level("node", 4, name, 1e11),
        small.level("group", 64, name, 2.5e10),
        small.level("machine", 1024, name, 2.5e10, taper=2.0),
    ]
    machine = small.machine(levels, 4, backend)
    degrees, size = np.array([1, 2, 4, 6, 16, 256, 1024]), 1e6
    seconds = networks.seconds(machine, collective, size, [(degrees, 1)])
    assert seconds[0] == 0
    assert np.isfinite(seconds).all()
    assert (seconds[1:] > 1e-6).all()
    for degree, time_s in zip(degrees, seconds, strict=True):
        terms = networks.explain(machine, collective, size, [(int(degree), 1)])
        assert sum(term.seconds for term in terms) == pytest.approx(time_s, rel=1e-12)
        assert all(term.source and term.what for term in terms)


def test_every_library_has_every_collective() -> None:
    assert {library: sorted(ways) for library, ways in WAYS.items()} == dict.fromkeys(
        WAYS, COLLECTIVES
    )


TOY = '''
    """A ring of string."""

    import numpy as np

    from armillary.networks.joint import Ways


    class String:
        """One byte at a time."""

        name = "string"
        fraction = 1.0
        source = "a ball of string"
        step_factor = 1.0
        pieces = 0.0
        through_adapters = False
        is_spread = False

        def bytes_per_s(self, level, pattern, num_units, most_units):
            return np.full_like(num_units, level.link_bytes_per_s)

        def num_hops(self, level, pattern, num_units, most_units):
            return num_units

        def capacities(self, joint):
            return np.array([joint.rank_bytes_per_s])

        def ends(self, joint):
            return np.full((1, 2), -1)

        def ways(self, joint, trips):
            every = np.arange(trips.source.size)
            return Ways(trip=every, link=np.zeros_like(every), share=np.ones(every.size))

        def border(self, joint, source, is_outward):
            return np.full(source.shape, -1)


    NETWORK = String()
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with one new file beside the room's own."""
    (tmp_path / "string.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(tmp_path)])
    discover.cache_clear()
    yield
    discover.cache_clear()


def test_one_new_file_is_a_new_network(toy: None) -> None:
    assert "string" in discover()
    machine = small.machine([small.level("machine", 16, "string", 1.0)], 1, "gloo")
    assert networks.seconds(machine, "send", 1000.0, [(2, 1)]) > 1000
    burst = networks.Burst(collective="batch_isend_irecv", bytes=2000.0, spans=((2, 1),))
    assert networks.contended_seconds(machine, [burst]).seconds[0] > 16_000


def test_an_unknown_network_is_named_with_its_place() -> None:
    machine = small.machine([small.level("machine", 16, "dragonflies", 1e9)], 1)
    with pytest.raises(SpecError, match=r"machine\.levels\.machine\.network.*dragonfl") as raised:
        networks.seconds(machine, "send", 1.0, [(2, 1)])
    assert "did you mean 'dragonfly'?" in str(raised.value)


def test_an_unknown_collective_is_refused() -> None:
    with pytest.raises(SpecError, match=r"transfer\.collective"):
        networks.seconds(small.pods(), "all_reduces", 1.0, [(2, 1)])
