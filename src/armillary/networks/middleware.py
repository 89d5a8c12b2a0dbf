"""The libraries that carry collectives: which algorithms each has, and what a step costs it.

A library picks by size and ranks, from tables or a cost model of its own; here it takes the
fastest of what it has. So a plan never pays for a bad choice of a library, and a time never falls
when a message grows, as it does where tables switch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from armillary.core import collectives as forms
from armillary.core.collectives import Algorithm
from armillary.networks.door import Pattern
from armillary.spec.machine import Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a library hands on a piece: seconds to start, seconds of a step, share of the rate.

    A step takes the longer of the library's own time and the level's latency. Where steps do not
    wait for each other (`waits` is false), the latency comes once. A protocol that is known on some
    networks alone is for those (`only`); one may be limited to tensors of `most_bytes`, and have
    its own share of the cross term of `pieces` in place of the topology's.
    """

    name: str
    start_s: float
    inside_step_s: float
    between_step_s: float
    fraction: float
    source: str
    waits: bool = True
    avoids: tuple[str, ...] = ()  # networks on which it is switched off
    only: tuple[str, ...] = ()
    most_bytes: float = math.inf
    pieces: float | None = None
    between_trips: float = 1.0

    def serves(self, networks: set[str]) -> bool:
        """Whether it is used where `networks` join the nodes."""
        return not networks & set(self.avoids) and (
            not self.only or bool(networks & set(self.only))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to do a collective over levels.

    `flow` says how levels meet: "around" is one ring through all ranks, "up and down" a tree of
    the units of each level, "by level" one level after the other on a part of the tensor, "at
    once" all levels at the same time, "farthest" only the outermost. `is_pipelined`: the tensor
    goes in pieces, so that levels work at the same time.
    """

    flow: Literal["around", "up and down", "by level", "at once", "farthest"]
    inside: Algorithm
    between: Algorithm
    pattern: Pattern
    protocol: Protocol
    is_pipelined: bool = True

    @property
    def name(self) -> str:
        """The way in words, such as `NCCL LL ring`."""
        inside = "" if self.inside is self.between else f", {self.inside.name} inside"
        return f"{self.protocol.name} {self.between.name}{inside}"


# Starts, steps and shares of the rate: NCCL src/graph/tuning.cc (June 2026; of LL around a ring
# between nodes an earlier one, 1/4: it was later set to 1/2, but capped). Hu et al.,
# arXiv:2507.04786, measured 25 to 50 % of the peak with LL and 95 % with LL128. The correction
# table of trees of 16 KiB to 4 MiB is left out: it stands for the time of pieces, which is added.
_TUNING = "NCCL src/graph/tuning.cc, June 2026; arXiv:2507.04786 (rates of protocols)"
# Slingshot has its own three: CSCS documentation, communication/nccl.md, runs without LL128
# (NCCL_PROTO=^LL128), and its all-reduces over 2 nodes of 4 GH200 from 8 B to 128 MiB gave the
# numbers below. To 2 KiB a step takes half of NCCL's own (on the network's 1.5 times): messages go
# eagerly. Larger ones meet first (rendezvous): 10 us once. Simple takes 112 us more to start than
# on InfiniBand; whether once or every step two nodes cannot tell, and once errs to fast for rings
# of many nodes. Pieces: 64 KiB and 1 MiB for LL, 8 to 128 MiB for Simple.
_SLINGSHOT = ("dragonfly",)
_CSCS = "NCCL on 2 nodes of 4 GH200, CSCS documentation, communication/nccl.md; " + _TUNING


def _nccl(kind: str, name: str, times_us: tuple[float, float, float], share: float) -> Protocol:
    start, inside, between = (time * 1e-6 for time in times_us)
    return Protocol(
        name=f"{kind} {name}",
        start_s=start,
        inside_step_s=inside,
        between_step_s=between,
        fraction=share,
        source=_TUNING,
        avoids=_SLINGSHOT,
    )


def _slingshot(
    kind: str, times_us: Mapping[str, tuple[float, float, float]], shares: Mapping[str, float]
) -> tuple[Protocol, ...]:
    """The protocols over libfabric's Slingshot provider, from NCCL's own `times_us`."""
    start, inside, between = (time * 1e-6 for time in times_us["LL"])
    eager = Protocol(
        name=f"{kind} LL eager",
        start_s=start,
        inside_step_s=inside,
        between_step_s=between / 2.0,
        fraction=shares["LL"],
        source=_CSCS,
        only=_SLINGSHOT,
        most_bytes=2048.0,
    )
    meeting = replace(
        eager, name=f"{kind} LL", start_s=start + 10e-6, most_bytes=math.inf, pieces=1.45
    )
    start, inside, between = (time * 1e-6 for time in times_us["Simple"])
    simple = replace(
        meeting,
        name=f"{kind} Simple",
        start_s=start + 112e-6,
        inside_step_s=inside,
        between_step_s=between,
        fraction=shares["Simple"],
        pieces=0.26,
    )
    return eager, meeting, simple


def _nccl_ways(kind: str) -> dict[str, tuple[Way, ...]]:
    """The ways of NCCL, and of RCCL, which is built from it."""
    ring_us = {"LL": (6.6, 0.6, 2.7), "LL128": (14.0, 1.9, 4.0), "Simple": (8.4, 3.4, 14.0)}
    tree_us = {"LL": (6.8, 0.6, 5.0), "LL128": (14.0, 1.25, 8.5), "Simple": (8.4, 4.0, 14.0)}
    ring_share = {"LL": 0.25, "LL128": 0.92, "Simple": 1.0}
    tree_share = {"LL": 0.92 / 3.8, "LL128": 0.92 * 120 / 128, "Simple": 0.92}
    rings = _protocols(kind, ring_us, ring_share)
    trees = _protocols(kind, tree_us, tree_share)
    # A kernel serves many peers at once; H100 starts 8 peers 1.7 us later than 2 (the fits).
    peers = Protocol(
        name=f"{kind} peers",
        start_s=9.0e-6,
        inside_step_s=0.3e-6,
        between_step_s=0.3e-6,
        fraction=1.0,
        source="NCCL all-to-all of aiconfigurator-core 0.12.0, H100, 2 to 8 ranks",
        waits=False,
    )
    around = _around(forms.RING, rings)
    return {
        "all_reduce": _around(forms.RING_ALL_REDUCE, rings) + _trees(trees),
        "all_gather_into_tensor": around,
        "reduce_scatter_tensor": around,
        "all_to_all_single": _at_once(peers, forms.PAIRWISE),
        "broadcast": _around(forms.PIPELINED_CHAIN, rings),
        **_pairs(tuple(one for one in rings if not one.name.endswith("LL128"))),
    }


def _protocols(
    kind: str, times_us: Mapping[str, tuple[float, float, float]], shares: Mapping[str, float]
) -> tuple[Protocol, ...]:
    """The protocols on any network, and those of Slingshot."""
    anywhere = tuple(_nccl(kind, name, times, shares[name]) for name, times in times_us.items())
    return anywhere + _slingshot(kind, times_us, shares)


def _around(form: Algorithm, protocols: tuple[Protocol, ...]) -> tuple[Way, ...]:
    return tuple(
        Way(flow="around", inside=form, between=form, pattern="ring", protocol=one)
        for one in protocols
    )


def _trees(protocols: tuple[Protocol, ...]) -> tuple[Way, ...]:
    return tuple(
        Way(
            flow="up and down",
            inside=forms.CHAIN_ALL_REDUCE,
            between=forms.DOUBLE_TREE,
            pattern="exchange",
            protocol=one,
        )
        for one in protocols
    )


def _at_once(protocol: Protocol, *algorithms: Algorithm) -> tuple[Way, ...]:
    return tuple(
        Way(
            flow="at once",
            inside=form,
            between=form,
            pattern="all",
            protocol=protocol,
            is_pipelined=False,
        )
        for form in algorithms
    )


def _pairs(protocols: tuple[Protocol, ...]) -> dict[str, tuple[Way, ...]]:
    return {
        collective: tuple(
            Way(flow="farthest", inside=form, between=form, pattern="pair", protocol=p)
            for p in protocols
        )
        for collective, form in (("send", forms.PAIR), ("batch_isend_irecv", forms.NEIGHBOURS))
    }


def _by_level(protocol: Protocol, *algorithms: Algorithm) -> tuple[Way, ...]:
    return tuple(
        Way(
            flow="by level",
            inside=a,
            between=a,
            pattern="ring" if a.name == "ring" else "exchange",
            protocol=protocol,
            is_pipelined=False,
        )
        for a in algorithms
    )


def _mpi_ways(protocol: Protocol) -> dict[str, tuple[Way, ...]]:
    """The ways of MPICH and of libraries that choose as it does, first inside nodes, then between.

    Source: MPICH 5.1 maint/tuning/coll/mpir/generic.json; oneCCL on Aurora: ALCF user guides
    (direct to 1 MiB, above Rabenseifner).
    """
    gathers = _by_level(protocol, forms.DOUBLING, forms.RING)
    return {
        "all_reduce": _by_level(
            protocol, forms.DOUBLING_ALL_REDUCE, forms.RABENSEIFNER, forms.RING_ALL_REDUCE
        ),
        "all_gather_into_tensor": gathers,
        "reduce_scatter_tensor": gathers,
        "all_to_all_single": _at_once(protocol, forms.PAIRWISE, forms.BRUCK),
        "broadcast": _by_level(protocol, forms.BINOMIAL, forms.SCATTER_GATHER),
        **_pairs((protocol,)),
    }


def _gloo_ways(protocol: Protocol) -> dict[str, tuple[Way, ...]]:
    """The ways that torch asks of gloo, which knows nothing of nodes.

    An all-reduce is always one ring, of pieces that are on the wire while others are added up, and
    a reduce-scatter an all-reduce of which each rank takes its part.

    Source: gloo/allreduce.cc, allgather.cc, alltoall.cc, broadcast.cc of April 2026; torch 2.13
    ProcessGroupGloo.cpp; measured over a shaped link (docs/networks.md).
    """

    def around(form: Algorithm) -> tuple[Way, ...]:
        (way,) = _around(form, (protocol,))
        return (replace(way, is_pipelined=False),)

    return {
        "all_reduce": around(forms.RING_ALL_REDUCE),
        "all_gather_into_tensor": around(forms.RING),
        "reduce_scatter_tensor": around(forms.RING_ALL_REDUCE),
        "all_to_all_single": _at_once(protocol, forms.PAIRWISE),
        "broadcast": _by_level(protocol, forms.BINOMIAL),
        **_pairs((protocol,)),
    }


# oneCCL all-reduce of 256 B over 2 and 4 ranks: 14.2 and 17.8 us, in 2 and 4 steps.
_ONECCL = Protocol(
    name="oneCCL",
    start_s=10.6e-6,
    inside_step_s=1.8e-6,
    between_step_s=1.8e-6,
    fraction=1.0,
    source="oneCCL 2021.17 of aiconfigurator-core 0.12.0, Arc B60, 2 and 4 ranks",
)
_GLOO = Protocol(
    name="gloo",
    start_s=1.2e-4,
    inside_step_s=5e-5,
    between_step_s=5e-5,
    fraction=1.0,
    source="torch 2.13 gloo over loopback and a shaped link (docs/networks.md)",
    # gloo/transport/tcp/pair.cc: a message leaves when the note that it is awaited has come.
    between_trips=2.0,
)
GUESS_XLA_START_S = 10e-6
GUESS_XLA_STEP_S = 1e-6
_XLA = Protocol(
    name="XLA",
    start_s=GUESS_XLA_START_S,
    inside_step_s=GUESS_XLA_STEP_S,
    between_step_s=GUESS_XLA_STEP_S,
    fraction=1.0,
    source="not measured",
)

WAYS: Mapping[str, Mapping[str, tuple[Way, ...]]] = {
    "NCCL": _nccl_ways("NCCL"),
    "RCCL": _nccl_ways("RCCL"),
    "oneCCL": _mpi_ways(_ONECCL),
    "gloo": _gloo_ways(_GLOO),
    "XLA": _mpi_ways(_XLA),
}


def library(machine: Machine) -> str:
    """The library behind torch's backend on `machine`: a key of `WAYS`."""
    backend = machine.device.backend
    if backend == "nccl":
        return "RCCL" if machine.device.vendor == "amd" else "NCCL"
    if backend in ("xccl", "ccl"):
        return "oneCCL"
    return "XLA" if machine.device.torch_device == "xla" else "gloo"
