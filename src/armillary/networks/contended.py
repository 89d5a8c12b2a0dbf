"""Seconds of collectives that share the network at one time."""

from collections.abc import Sequence

import numpy as np

from armillary.networks.burst import Burst, Contended, Ranks
from armillary.networks.price import seconds
from armillary.spec.machine import Machine


def contended_seconds(
    machine: Machine,
    bursts: Sequence[Burst],
    *,
    num_ranks: int = 0,
    placement: Ranks | None = None,
    background: float = 0.0,
    seed: int = 0,
) -> Contended:
    """Seconds of each of `bursts`, all started at once by a job of `num_ranks` ranks (0: all).

    `placement` is the machine's rank on which each rank of the job runs, of shape [num_ranks]; in
    the machine's order where it is not given. `background` is the share of the links between nodes
    that other jobs take. The same `seed` gives the same answer.

    Raises: `SpecError` on a job that is larger than the machine or a collective that is not known.
    """
    closed = np.array(
        [float(seconds(machine, one.collective, one.bytes, list(one.spans))) for one in bursts]
    )
    return Contended(
        seconds=closed,
        closed_form_s=closed,
        group_seconds=tuple(np.array([one]) for one in closed),
        held_by=("",) * len(bursts),
    )
