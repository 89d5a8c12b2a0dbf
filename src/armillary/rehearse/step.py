"""A step as tasks, and what each of them is."""

from dataclasses import dataclass, field

from armillary.core.play import Played, Tasks, play
from armillary.rehearse.kinds import Sorted
from armillary.rehearse.links import Links
from armillary.spec.workload import StageWork, Workload

COMPUTE, GATHER, REDUCE, AHEAD, BACK = "compute", "gather", "reduce", "send", "send back"
LANES = (COMPUTE, GATHER, REDUCE, AHEAD, BACK)


@dataclass(frozen=True, slots=True)
class Label:
    """What a task is: of which coordinate of the pipeline, in which lane, and of what.

    `kind` is a pass (F, B, I, W), a name of messages such as `data gradients`, "launch", "update"
    or "step"; `level` is the index of the outermost level that a message crosses, -1 for none.
    """

    coordinate: int
    lane: str
    kind: str
    stage: int = -1
    micro_batch: int = -1
    level: int = -1
    bytes: float = 0.0
    group: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Step:
    """A step as tasks, and what each is; `players` are the ranks that play, by coordinate."""

    workload: Workload
    links: Links
    sorted: Sorted
    tasks: Tasks = field(default_factory=Tasks)
    labels: list[Label] = field(default_factory=list)
    players: list[list[int]] = field(default_factory=list)
    player_of: list[int] = field(default_factory=list)
    link_names: list[tuple[int, int]] = field(default_factory=list)

    def play(self) -> Played:
        """When everything starts and ends."""
        capacity = [self.links.capacity(level) for level, _ in self.link_names]
        return play(self.tasks, capacity, self.workload.slowdown)


def stages_of(workload: Workload) -> list[StageWork]:
    """The work of every stage, in order."""
    return [one for stage in workload.stages for one in [stage] * stage.num_stages]
