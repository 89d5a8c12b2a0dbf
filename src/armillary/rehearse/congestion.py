"""How many times longer the wire of a collective takes than its closed form, flow by flow."""

from dataclasses import dataclass, field

from armillary.networks import Burst, contended_seconds
from armillary.spec import Machine

Spans = tuple[tuple[int, int], ...]
ALIKE = {"reduce_scatter_tensor": "all_gather_into_tensor", "broadcast": "all_gather_into_tensor"}
"""Collectives whose bytes take the same ways as those of another."""
LARGE_BYTES = 2.0**27
"""Size from which on the wire is nearly all of a collective, so that the ratio is that of flows."""

TOLERANCE = 0.05
"""Ends of flows that are so near to each other are one event: the ratio may be that much long."""


@dataclass(kw_only=True)
class Congestion:
    """Ratios of flows to closed forms on a machine, for a job of so many ranks, each found once.

    All groups of the job are at it together, where they lie: `networks.contended_seconds` routes
    what each rank sends. The ratio is taken to hold for any size of the same collective and group,
    and for links that are all so many times faster.
    """

    machine: Machine
    num_ranks: int
    known: dict[tuple[str, Spans], float] = field(default_factory=dict)

    def ratio(self, collective: str, size: float, spans: Spans) -> float:
        """Seconds on the wire as flows, over those of the closed form."""
        named = ALIKE.get(collective, collective)
        key = (named, tuple(span for span in spans if span[0] > 1))
        if key not in self.known:
            burst = Burst(collective=named, bytes=max(size, LARGE_BYTES), spans=key[1])
            found = contended_seconds(
                self.machine, [burst], num_ranks=self.num_ranks, tolerance=TOLERANCE
            )
            closed_s = float(found.closed_form_s[0])
            self.known[key] = float(found.seconds[0]) / closed_s if closed_s > 0 else 1.0
        return self.known[key]
