"""Predictions beside measured runs: errors by source and kind, memory, what fits, and ranks."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armillary.plan.price import price
from armillary.plan.published import Subject, subject
from armillary.plan.runs import Run, Skipped, read_runs
from armillary.spec import SpecError

APART = 0.03
"""Runs whose seconds differ by a smaller share are not told apart by what was measured.

Source: one layout of BLOOM's tuning (181 B, tensor 8, pipeline 6, micro batch 4) was measured at
120.2 to 121.5 s, and later in 114.0: bigscience-workshop/bigscience chronicles-prequel.md (2022).
"""
LEAST_RANKED = 3
"""Layouts of one model on one machine from which on their order is compared."""
BESIDES = ("fragments", "overhead")
"""Kinds of memory that no program asks for."""
ASKED = ("allocated", "allocator peak, ", "buffer assignment")
"""Words of a table's `memory_basis` for bytes in use, without what an allocator keeps besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A run and what the plan says of it; nan where the row, or the plan, has no such number."""

    run: Run
    program: str
    step_s: float
    memory_bytes: float
    allocated_bytes: float
    room_bytes: float
    assumed: tuple[str, ...]

    @property
    def step_error(self) -> float:
        """Ours / theirs - 1 of the seconds of a step."""
        return self.step_s / self.run.step_s - 1.0 if self.run.step_s else np.nan

    @property
    def memory_error(self) -> float:
        """Ours / theirs - 1 of the bytes of a rank, where the run had room.

        Of what a program has asked for where that was measured, else of all that it took.
        """
        is_known = self.run.memory_bytes and self.run.outcome == "ok"
        asked = any(word in self.run.memory_basis for word in ASKED)
        ours = self.allocated_bytes if asked else self.memory_bytes
        return ours / self.run.memory_bytes - 1.0 if is_known else np.nan

    @property
    def fits(self) -> bool:
        """Whether the plan says that the run has room."""
        return self.memory_bytes <= self.room_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Absolute relative errors of some rows; nan of none. `weighted` counts every source once."""

    num_rows: int
    median: float
    ninetieth: float
    mean: float
    bias: float

    @classmethod
    def of(cls, errors: Sequence[float], weights: Sequence[float] | None = None) -> "Errors":
        """The quantiles of |error|, by weight, and the median of the errors themselves."""
        found = np.asarray(errors, np.float64)
        if not found.size:
            return cls(num_rows=0, median=np.nan, ninetieth=np.nan, mean=np.nan, bias=np.nan)
        weight = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
        absolute = np.abs(found)
        return cls(
            num_rows=len(found),
            median=_quantile(absolute, weight, 0.5),
            ninetieth=_quantile(absolute, weight, 0.9),
            mean=float(np.average(absolute, weights=weight)),
            bias=_quantile(found, weight, 0.5),
        )


def _quantile(values: Any, weights: Any, share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / np.sum(weights)
    return float(values[order][min(np.searchsorted(reached, share - 1e-9), len(values) - 1)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Layouts of one model, batch and number of devices: how well ours orders theirs.

    `regret` is what our first choice takes longer than the fastest, `tau` Kendall's, and
    `tau_apart` that of the pairs which were measured further apart than `APART`; nan of none.
    `tau_most` is the mean that a plan without error would reach, by how runs scatter that a table
    does not tell apart.
    """

    what: str
    num_layouts: int
    regret: float
    tau: float
    tau_apart: float
    tau_most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """How far runs lie apart that are the same to a plan: one task, layout and program.

    Of `num_pairs` of them the `median` and the `ninetieth` of |log(one / other)|; nan of none.
    """

    num_pairs: int
    median: float
    ninetieth: float

    @property
    def deviation(self) -> float:
        """The standard deviation of one run; a normal one's median distance is 0.954 of it."""
        return self.median / 0.954 if self.num_pairs else np.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """All compared runs of a file, and the rows that could not be."""

    compared: tuple[Compared, ...]
    skipped: tuple[Skipped, ...]
    quality: str

    def errors(self, value: Callable[[Compared], float], kinds: Sequence[str] = ()) -> Errors:
        """Errors over all sources, each weighing the same; of some kinds of model, or all."""
        rows = [c for c in self.compared if not kinds or c.run.kind in kinds]
        rows = [c for c in rows if np.isfinite(value(c))]
        number = Counter(c.run.source_group for c in rows)
        return Errors.of([value(c) for c in rows], [1 / number[c.run.source_group] for c in rows])

    def by_group(self, value: Callable[[Compared], float]) -> dict[tuple[str, str], Errors]:
        """Errors of each source and kind of model."""
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for one in self.compared:
            if np.isfinite(value(one)):
                groups[one.run.source_group, one.run.kind].append(value(one))
        return {key: Errors.of(found) for key, found in sorted(groups.items())}

    @property
    def told_rightly(self) -> tuple[int, int]:
        """Of how many runs it is said rightly whether they fit, of how many."""
        rows = [c for c in self.compared if c.run.outcome == "oom" or c.run.step_s]
        rows = [c for c in rows if np.isfinite(c.memory_bytes)]
        return sum(c.fits == (c.run.outcome != "oom") for c in rows), len(rows)

    @property
    def _sets(self) -> Iterable[tuple[Hashable, dict[Hashable, list[Compared]]]]:
        """Runs with a step time by task, and of each by layout."""
        sets: dict[Hashable, dict[Hashable, list[Compared]]] = {}
        for one in self.compared:
            if np.isfinite(one.step_error):
                layouts = sets.setdefault((one.program, *_same_task(one.run)), {})
                layouts.setdefault(_layout(one.run), []).append(one)
        return sets.items()

    @property
    def scatter(self) -> Scatter:
        """How far runs lie apart that are the same to a plan; what no plan can be truer than."""
        apart: list[float] = []
        for _, layouts in self._sets:
            for rows in layouts.values():
                theirs = np.log([c.run.step_s for c in rows])
                first, second = np.triu_indices(len(rows), 1)
                apart += np.abs(theirs[first] - theirs[second]).tolist()
        found = Errors.of(apart)
        return Scatter(num_pairs=len(apart), median=found.median, ninetieth=found.ninetieth)

    @property
    def ranked(self) -> tuple[Ranked, ...]:
        """Every set of layouts that is published of one model on one machine."""
        deviation = self.scatter.deviation
        found = (_ranked(str(key), layouts, deviation) for key, layouts in self._sets)
        return tuple(one for one in found if one is not None)

    def to_dict(self) -> dict[str, Any]:
        """The same for programs: rows with theirs and ours, and the sums over them."""
        right, number = self.told_rightly
        return {
            "quality": self.quality,
            "step": _told(self.errors(lambda c: c.step_error)),
            "memory": _told(self.errors(lambda c: c.memory_error)),
            "fits": {"right": right, "of": number},
            "ranks": [
                {"of": r.what, "layouts": r.num_layouts, "regret": r.regret, "tau": r.tau}
                for r in self.ranked
            ],
            "rows": [
                {
                    "id": c.run.id,
                    "source": c.run.source_group,
                    "kind": c.run.kind,
                    "theirs_step_s": c.run.step_s or None,
                    "ours_step_s": _or_none(c.step_s),
                    "theirs_memory_bytes": c.run.memory_bytes or None,
                    "ours_memory_bytes": _or_none(c.memory_bytes),
                    "assumed": list(c.assumed),
                }
                for c in self.compared
            ],
            "skipped": [{"id": s.id, "why": s.why} for s in self.skipped],
        }

    def table(self) -> str:
        """All of it in words, for a terminal."""
        from armillary.plan.validation import told

        return told(self)


def validate(path: Path, *, quality: str = "A") -> Validation:
    """Every run of the CSV file `path` whose quality is among `quality`, predicted.

    Rows without a quality count as A. A row that cannot be priced is named among the skipped.

    Raises: `SpecError` if the file is no table of runs.
    """
    runs, skipped = read_runs(path)
    compared: list[Compared] = []
    for run in runs:
        if (run.quality or "A") not in quality:
            continue
        if not run.step_s and not run.memory_bytes and run.outcome != "oom":
            skipped.append(Skipped(id=run.id, why="neither a step time nor memory was measured"))
            continue
        try:
            compared.append(compare(subject(run)))
        except (SpecError, ValueError) as error:
            skipped.append(Skipped(id=run.id, why=_why(error)))
    return Validation(compared=tuple(compared), skipped=tuple(skipped), quality=quality)


def compare(what: Subject) -> Compared:
    """A run beside what the plan says of it.

    Raises: `SpecError` if its layout cannot be priced.
    """
    priced = price(
        what.graph, what.machine, what.software, what.grid, global_batch_size=what.global_batch_size
    )
    step_s = float(priced.step_s.ravel()[0])
    if not np.isfinite(step_s):
        code = int(np.ravel(priced.refused)[0])
        if code:
            raise priced.reasons[code - 1]
        raise ValueError("the plan has no time for it")
    return Compared(
        run=what.run,
        program=what.software.name,
        step_s=step_s,
        memory_bytes=float(priced.memory_bytes.ravel()[0]),
        allocated_bytes=float(
            sum(np.ravel(priced.memory[n])[0] for n in priced.memory if n not in BESIDES)
        ),
        room_bytes=float(what.machine.device.memory_bytes),
        assumed=what.assumed,
    )


def _why(error: Exception) -> str:
    if isinstance(error, SpecError):
        return f"{error.where}: {error.found} ({error.rule})"
    return str(error)


def _same_task(run: Run) -> tuple[Hashable, ...]:
    """What two runs share whose layouts may be compared."""
    sizes = (run.layers, run.hidden, run.heads, run.seq, run.vocab)
    return (
        run.source_group,
        run.model,
        sizes,
        run.global_batch_size,
        run.num_devices,
        run.precision,
        run.gpu,
        run.software,
    )


def _ranked(what: str, layouts: dict[Hashable, list[Compared]], deviation: float) -> Ranked | None:
    """The order of some layouts, those measured more than once by their middle."""
    if len(layouts) < LEAST_RANKED:
        return None
    theirs = np.array([np.median([c.run.step_s for c in rows]) for rows in layouts.values()])
    ours = np.array([np.median([c.step_s for c in rows]) for rows in layouts.values()])
    agree = np.sign(theirs[:, None] - theirs) * np.sign(ours[:, None] - ours)
    pairs = np.triu_indices(len(theirs), 1)
    distance = np.abs(np.log(theirs[:, None] / theirs))[pairs]
    apart = distance > APART
    known = [math.erf(d / (2.0 * deviation)) for d in distance] if deviation > 0 else [1.0]
    return Ranked(
        what=what,
        num_layouts=len(layouts),
        regret=float(theirs[np.argmin(ours)] / theirs.min() - 1.0),
        tau=float(np.mean(agree[pairs])),
        tau_apart=float(np.mean(agree[pairs][apart])) if apart.any() else np.nan,
        tau_most=float(np.mean(known)),
    )


def _layout(run: Run) -> Hashable:
    """What tells layouts apart; a stage of sharding only where there are ranks to share."""
    degrees = (run.tensor, run.pipeline, run.stages_per_rank, run.sequence, run.expert, run.data)
    inner = max(run.tensor, 1) * max(run.pipeline, 1) * max(run.sequence, 1)
    zero = run.zero if run.num_devices > inner else -1
    return (*degrees, zero, run.cuts_norms, run.recompute, run.schedule, run.micro_batch_size)


def _told(errors: Errors) -> dict[str, Any]:
    return {
        "rows": errors.num_rows,
        "median": _or_none(errors.median),
        "p90": _or_none(errors.ninetieth),
        "mean": _or_none(errors.mean),
        "bias": _or_none(errors.bias),
    }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def median(values: Iterable[float]) -> float:
    """The middle of the values; nan of none."""
    found = np.asarray(list(values), np.float64)
    return float(np.median(found)) if found.size else np.nan
