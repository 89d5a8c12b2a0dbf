"""What a pass of a stage takes, what is sent inside and beside it, and where it is cut."""

from collections.abc import Iterator
from dataclasses import dataclass

from armillary.core import compute
from armillary.core.orders import BACKWARD, FORWARD, INPUT, WEIGHT, Run
from armillary.rehearse.kinds import Kind, Sorted
from armillary.rehearse.links import Cost
from armillary.rehearse.step import stages_of
from armillary.spec.workload import Workload

Sent = list[tuple[Kind, Cost]]


@dataclass(slots=True)
class Pass:
    """Seconds that a device is at a pass, and the messages inside it, one after the other."""

    busy_s: float
    inside: Sent


class Passes:
    """The passes of all stages of a workload."""

    def __init__(self, workload: Workload, sorts: Sorted) -> None:
        self.workload, self.sorts = workload, sorts
        self.stages = stages_of(workload)
        self.mean_blocks = sum(s.num_blocks for s in self.stages) / len(self.stages) or 1.0
        self.known = {
            (kind, stage): self._pass(kind, stage)
            for kind in (FORWARD, BACKWARD, INPUT, WEIGHT)
            for stage in range(len(self.stages))
        }

    def of(self, run: Run) -> Pass:
        """That of one micro batch through one stage."""
        return self.known[run.kind, run.stage]

    def _pass(self, kind: str, stage: int) -> Pass:
        """A pass; the host's launches make it as long as they take."""
        work, load = self.stages[stage], self.workload
        share = work.num_blocks / self.mean_blocks / load.num_micro_batches / load.stages_per_rank
        phase = "forward" if kind == FORWARD else "backward"
        inside = [
            (sent, sent.cost.times(share)) for sent in self.sorts.inside[phase] if kind != WEIGHT
        ]
        sent_s = sum(cost.seconds for _, cost in inside)
        calls = sum(sent.calls for sent, _ in inside) * share
        if kind == FORWARD:
            busy_s, launch_s = work.forward_s, work.forward_launch_s
        else:
            whole_s = work.backward_input_s + work.backward_weight_s + work.again_s
            launch_s = work.backward_launch_s
            busy_s = {
                BACKWARD: whole_s,
                INPUT: work.backward_input_s + work.again_s,
                WEIGHT: work.backward_weight_s,
            }[kind]
            launch_s *= busy_s / whole_s if whole_s else 0.0
        launch_s += calls * load.message_launch_s
        waited_s = float(compute.waited_s(busy_s + sent_s, launch_s))
        once_s = load.micro_batch_s / load.stages_per_rank if kind == FORWARD else 0.0
        return Pass(busy_s + waited_s + once_s, inside)

    def beside(self, run: Run) -> tuple[Sent, Sent]:
        """What is gathered for a pass, and what it sends of gradients."""
        load, sorts = self.workload, self.sorts
        share = self.stages[run.stage].num_blocks / self.mean_blocks / load.stages_per_rank
        phase = "forward" if run.kind == FORWARD else "backward"
        gathers: Sent = []
        reduces: Sent = []
        if run.kind != WEIGHT:
            for kind in sorts.gathers[phase]:
                if run.micro_batch < kind.rounds:
                    gathers.append((kind, kind.cost.times(share / kind.rounds)))
        if run.kind in (BACKWARD, WEIGHT):
            for kind in sorts.reduces:
                if self._left_after(run) < kind.rounds:
                    reduces.append((kind, kind.cost.times(share / kind.rounds)))
        return gathers, reduces

    def _left_after(self, run: Run) -> int:
        """How many micro batches of a stage come after this one, backward."""
        m = self.workload.num_micro_batches
        reverses = self.workload.schedule == "looped_bfs"
        return run.micro_batch if reverses else m - 1 - run.micro_batch


class Cuts:
    """Where a pass of K blocks is cut: what is gathered is there by then, what is sent from then.

    `first_share` of what is gathered comes before the pass, `last_share` of what is sent after it.
    """

    def __init__(
        self,
        busy_s: float,
        num_blocks: float,
        gathers: Sent,
        reduces: Sent,
    ) -> None:
        rest = 1.0 - 1.0 / max(num_blocks, 1.0)
        hidden = min((kind.hidden for kind, _ in gathers), default=0.0)
        self.first_share = 1.0 - rest if hidden > 0 else 1.0
        self.gathered_s = busy_s * rest * hidden if gathers and hidden > 0 else None
        hides = min((kind.hidden for kind, _ in reduces), default=0.0)
        self.last_share = 1.0 - rest if hides > 0 and reduces else 1.0
        self.sent_s = busy_s * (1.0 - rest * hides) if reduces and hides > 0 and rest > 0 else None
        self.busy_s = busy_s

    def parts(self) -> Iterator[tuple[float, bool, bool]]:
        """Until when a part lasts, whether it waits for what is gathered, and whether what is sent
        starts after it.
        """
        ends = sorted({one for one in (self.gathered_s, self.sent_s) if one is not None})
        begins = 0.0
        for end in [*ends, self.busy_s]:
            is_gathered = self.gathered_s is not None and begins == self.gathered_s
            yield end, is_gathered, self.sent_s is not None and end == self.sent_s
            begins = end
