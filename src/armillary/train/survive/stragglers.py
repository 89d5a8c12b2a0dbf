"""Which rank the others wait for, and in which phase of a step."""

import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from armillary.step.world import World

EVERY_STEPS = 50
SHARE_OF_STEP = 0.1
"""How much of a step a rank may take longer than the fastest before it is named. A convention."""
IN_ORDER = ("data", "forward", "backward", "reduce", "optimizer")


class Stragglers:
    """Collects the phases of a rank's steps and compares the ranks now and then.

    Ranks wait for a slow one where they next meet, so a wait looks like work in a later phase. The
    first phase in which ranks differ is the one whose slowest rank is named. A phase that waits
    for the others inside, as a forward pass that gathers parameters does, shows nothing.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._steps: list[Mapping[str, float]] = []

    def add(self, phases_s: Mapping[str, float]) -> list[str]:
        """Take the phases of a step in; on all ranks, what was found once enough are in."""
        if self.world.mesh is None:
            return []
        self._steps.append(phases_s)
        if len(self._steps) < EVERY_STEPS:
            return []
        steps, self._steps = self._steps, []
        medians = [statistics.median(step.get(name, 0.0) for step in steps) for name in IN_ORDER]
        return slow_ranks(self._of_all(medians))

    def _of_all(self, medians: list[float]) -> list[list[float]]:
        mine = torch.tensor(medians, dtype=torch.float64, device=self.world.device)
        if mine.device.type == "mps":  # which has no float64
            mine = mine.float()
        everyone = [torch.empty_like(mine) for _ in range(self.world.num_ranks)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).tolist()


def slow_ranks(medians_s: Sequence[Sequence[float]]) -> list[str]:
    """Who is slow, in words, from the median seconds of each phase, one row a rank."""
    step_s = statistics.median(sum(row) for row in medians_s)
    for phase, of_ranks in zip(IN_ORDER, zip(*medians_s, strict=True), strict=True):
        fastest_s = min(of_ranks)
        slow = [
            (seconds - fastest_s, rank)
            for rank, seconds in enumerate(of_ranks)
            if seconds - fastest_s > SHARE_OF_STEP * step_s
        ]
        if slow and len(slow) <= len(of_ranks) // 2:
            slow.sort(reverse=True)
            return [
                f"rank {rank} takes {late_s * 1e3:.3g} ms longer than the fastest in {phase}, "
                f"of a step of {step_s * 1e3:.3g} ms"
                for late_s, rank in slow[:4]
            ]
        if slow:
            return []  # most ranks are slow here: they wait for each other
    return []
