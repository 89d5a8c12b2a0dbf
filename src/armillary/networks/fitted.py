"""Collectives that were measured: t = start + x / B + gamma sqrt(x), by number of ranks.

x is what one rank sends. The square root is what a message sent in pieces costs
(`core.collectives.pipelined_s`); with it, tables of NCCL from 512 B to 512 MiB are met to 3 to 7 %.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from armillary.core import collectives as forms
from armillary.core.collectives import Array
from armillary.spec.machine import CollectiveFit, Level

# The share of the whole tensor that one rank has to send, whoever it is sent to.
LEAST_SENT = {
    "all_reduce": forms.RING_ALL_REDUCE,
    "all_gather_into_tensor": forms.RING,
    "reduce_scatter_tensor": forms.RING,
    "all_to_all_single": forms.PAIRWISE,
    "broadcast": forms.PIPELINED_CHAIN,
    "send": forms.PAIR,
    "batch_isend_irecv": forms.NEIGHBOURS,
}


def sent_by_rank(collective: str, ranks: Array) -> Array:
    """The least that one of `ranks` sends in `collective`, as a share of the whole tensor."""
    return LEAST_SENT[collective].sent(ranks)


class FitTable:
    """The fits of one collective at one level, by number of ranks up to the level's.

    Between two fits the constants lie on a straight line over log2 of the ranks. Above the largest
    the start grows on and the rest stays; below the smallest all stays. No link carries more than
    its rate, so a fit made on faster links is held to those of the level.
    """

    def __init__(self, level: Level, collective: str, fits: Sequence[CollectiveFit]) -> None:
        self.level = level
        self.fits = sorted(fits, key=lambda fit: fit.degree)
        ranks = np.maximum(np.arange(level.num_ranks + 1.0), 2.0)
        at, known = np.log2(ranks), np.log2([fit.degree for fit in self.fits])
        starts = np.array([fit.start_s for fit in self.fits])
        slope = np.diff(starts[-2:]).sum() / max(float(np.diff(known[-2:]).sum()), 1.0)
        beyond = np.maximum(at - known[-1], 0.0)
        self.start_s = np.interp(at, known, starts) + max(float(slope), 0.0) * beyond
        per_byte = np.interp(at, known, [1.0 / fit.bytes_per_s for fit in self.fits])
        self.s_per_byte = np.maximum(per_byte, _least_s_per_byte(level, collective, ranks))
        self.root_s = np.interp(at, known, [fit.root_s_per_sqrt_byte for fit in self.fits])

    def seconds(self, ranks: Array, sent: Array) -> Array:
        """Seconds of a collective over `ranks` in which each sends `sent` bytes."""
        row = self._row(ranks)
        return np.asarray(
            self.start_s[row] + sent * self.s_per_byte[row] + self.root_s[row] * np.sqrt(sent)
        )

    def curve(self, ranks: Array, sent: Array) -> Array:
        """What a collective takes to start, a byte of its tensor, and the root of one; [3, rows].

        `sent` is the share of the tensor that each of `ranks` sends.
        """
        row = self._row(ranks)
        root_s = self.root_s[row] * np.sqrt(sent)
        return np.stack([self.start_s[row], sent * self.s_per_byte[row], root_s])

    def bytes_per_s(self, ranks: Array) -> Array:
        """What a rank of `ranks` sends of a large tensor."""
        return np.asarray(1.0 / self.s_per_byte[self._row(ranks)])

    def source(self, ranks: float) -> str:
        """Who measured the fit that is nearest to `ranks`."""
        return min(self.fits, key=lambda fit: abs(fit.degree - ranks)).source

    def _row(self, ranks: Array) -> NDArray[np.int64]:
        return np.minimum(np.ceil(ranks), self.level.num_ranks).astype(np.int64)


def _least_s_per_byte(level: Level, collective: str, ranks: Array) -> Array:
    """Seconds a byte at the link's rate; a switch that adds lets an all-reduce send S just once."""
    sent = LEAST_SENT[collective].sent(ranks) if collective == "all_reduce" else np.ones_like(ranks)
    return 1.0 / (level.link_bytes_per_s * np.maximum(sent, 1.0))


def tables_of(levels: Sequence[Level], collective: str) -> list[FitTable | None]:
    """For each of `levels` its table of `collective`, where it was measured there."""
    found = [level.collectives.get(collective, ()) for level in levels]
    return [
        FitTable(level, collective, fits) if fits else None
        for level, fits in zip(levels, found, strict=True)
    ]
