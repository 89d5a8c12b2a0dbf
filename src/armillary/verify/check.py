"""Layouts proven one by one: refused, equal, or wrong, and if wrong along which axis."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from armillary.axes import admit
from armillary.spec import Layout, SpecError
from armillary.step.world import count_micro_batches, with_micro_batches
from armillary.verify.compare import TOLERANCE, Difference, compare
from armillary.verify.prepare import Prepared
from armillary.verify.program import Program, Trace, run
from armillary.verify.ranks import Ranks, RanksFailed

EQUAL, WRONG, REFUSED, FAILED = "equal", "wrong", "refused", "failed"
MICRO_BATCHES_A_STAGE = 2
"""The fewest with which every schedule begins, goes on and ends as it would with more.

Training makes more of them, which is the same program over again.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What became of one layout: `state` is equal, wrong, refused (with `reason`) or failed.

    `differences` are of every tensor, the worst first; `suspects` are the axes of which the error
    comes, empty where there is none.
    """

    layout: Layout
    state: str
    differences: tuple[Difference, ...] = ()
    suspects: tuple[str, ...] = ()
    reason: str = ""
    refusal: SpecError | None = None

    @property
    def worst(self) -> float:
        """The largest relative difference of any tensor."""
        return max((d.difference for d in self.differences), default=0.0)


@dataclass(slots=True)
class Checker:
    """Checks layouts of one program on warm ranks, against a serial run made once.

    What an axis refuses is refused here, before any rank starts.
    """

    prepared: Prepared
    ranks: Ranks
    job: Callable[[Program, Layout], Trace] = run
    _known: dict[str, Finding] = field(default_factory=dict)
    _serial: Trace | None = None
    _was_repeated: bool = False

    @property
    def serial(self) -> Trace:
        """What the serial program computes."""
        if self._serial is None:
            try:
                self._serial = self.ranks.run(1, self.job, self.program, serial_layout())[0]
            except RanksFailed as failed:
                raise SpecError(
                    "recipe",
                    f"the serial program fails: {_shortest(failed.tracebacks)}",
                    "a layout is proven against a serial step that runs to its end",
                    "correct the recipe, or its tiny()",
                ) from None
            _require_finite(self._serial)
        return self._serial

    @property
    def program(self) -> Program:
        """What every layout is to compute."""
        return self.prepared.program

    def check(self, layout: Layout) -> Finding:
        """What becomes of `layout`; the axes that an error comes from are looked for.

        Raises: `SpecError` if the serial program fails, or gives other numbers when run again.
        """
        finding = self._check(layout)
        if finding.state in (EQUAL, REFUSED):
            return finding
        if finding.state == WRONG and not self._was_repeated:
            self._repeat()
        return replace(finding, suspects=tuple(self._suspects(finding)))

    def check_all(
        self, layouts: Iterable[Layout], told: Callable[[Finding], None] = lambda _: None
    ) -> list[Finding]:
        """Every layout in turn; `told` hears of each as it is done."""
        findings = []
        for layout in layouts:
            findings.append(self.check(layout))
            told(findings[-1])
        return findings

    def _repeat(self) -> None:
        """Run the serial program again: what differs from itself proves nothing."""
        self._was_repeated = True
        again = self.ranks.run(1, self.job, self.program, serial_layout())
        worst = compare(again, self.serial, serial_layout())[0]
        if not worst.difference <= TOLERANCE:
            raise SpecError(
                "recipe",
                f"the serial program gives other numbers when it is run again: {worst.kind} "
                f"{worst.name} differs by {worst.difference:.1e}",
                "a layout is proven against numbers that depend on the seed alone",
                "draw random numbers from torch, in model() or loss(), and keep no state of your "
                "own between calls",
            )

    def _check(self, layout: Layout) -> Finding:
        key = str(layout)
        if key not in self._known:
            self._known[key] = self._run(layout)
        return self._known[key]

    def _run(self, layout: Layout) -> Finding:
        try:
            admit(layout, self.prepared.graph)
        except SpecError as refusal:
            return _refused(layout, refusal)
        serial = self.serial
        try:
            as_run = as_verified(layout, self.program.batch_size)
            traces = self.ranks.run(layout.num_ranks, _answer, self.job, self.program, as_run)
        except RanksFailed as failed:
            return Finding(layout=layout, state=FAILED, reason=_shortest(failed.tracebacks))
        refusals = [answer for answer in traces if isinstance(answer, SpecError)]
        if refusals:
            return _refused(layout, refusals[0])
        num_micro_batches = count_micro_batches(as_run, self.program.batch_size)
        differences = tuple(compare(traces, serial, layout, num_micro_batches))
        is_equal = all(d.difference <= TOLERANCE for d in differences)
        return Finding(layout=layout, state=EQUAL if is_equal else WRONG, differences=differences)

    def _suspects(self, finding: Finding) -> Iterable[str]:
        """The axes of a wrong layout that are wrong alone; if only their product is, those along
        which ranks disagree, or else all of them.

        `micro_batch_size` is suspected instead where the same axes are right without micro batches.
        """
        layout = finding.layout
        names = [name for name, degree in layout.degrees.items() if degree > 1]
        if layout.micro_batch_size:
            whole = self._check(replace(layout, micro_batch_size=0))
            if whole.state == EQUAL:
                return ["micro_batch_size"]
        if len(names) == 1:
            return names
        alone = [n for n in names if self._check(_along(layout, n)).state in (WRONG, FAILED)]
        along = {name for d in finding.differences for name in d.along}
        return alone or [name for name in names if name in along] or names


def _refused(layout: Layout, refusal: SpecError) -> Finding:
    return Finding(layout=layout, state=REFUSED, reason=str(refusal), refusal=refusal)


def _along(layout: Layout, axis: str) -> Layout:
    """`layout` along one axis only, with what it says of that axis."""
    return replace(
        layout,
        degrees={axis: layout.degree(axis)},
        options={n: v for n, v in layout.options.items() if n.startswith(f"{axis}.")},
        micro_batch_size=0,
    )


def _require_finite(serial: Trace) -> None:
    """Raise `SpecError` if a loss is no number, to which nothing can be equal."""
    for index, loss in enumerate(serial.losses):
        if not math.isfinite(loss):
            raise SpecError(
                "recipe",
                f"the serial loss of step {index + 1} is {loss}",
                "a layout is proven against losses that are finite numbers",
                "lower the learning rate, or --steps",
            )


def serial_layout() -> Layout:
    """The layout of the serial program: no axis, float64."""
    return Layout(precision="float64")


def as_verified(layout: Layout, batch_size: int) -> Layout:
    """`layout` in float64, with micro batches where training would make some by itself."""
    in_float64 = replace(layout, precision="float64")
    return with_micro_batches(in_float64, batch_size, MICRO_BATCHES_A_STAGE)


def _answer(job: Callable[[Program, Layout], Trace], program: Program, layout: Layout) -> Any:
    """The trace of a rank, or the reason for which an axis refuses the model."""
    try:
        return job(program, layout)
    except SpecError as refusal:
        return refusal


def _shortest(tracebacks: dict[int, str]) -> str:
    """The last line of the first traceback that says something."""
    lines = [text.strip().splitlines()[-1] for _, text in sorted(tracebacks.items()) if text]
    said: Sequence[str] = [line for line in lines if "no answer" not in line] or lines
    return said[0] if said else "no answer"
