"""From the words of `armillary plan` to what is planned for, on what, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from armillary.machines import load as load_machine
from armillary.plan import software as programs
from armillary.plan.calibration import calibrated
from armillary.plan.calibration import load as calibration
from armillary.plan.choices import Fixed
from armillary.plan.planning import plan
from armillary.plan.ranking import Limits
from armillary.plan.software import Software
from armillary.plan.target import Target, find_target
from armillary.plan.why import why_not
from armillary.plan.wish import Wish
from armillary.spec import Device, Machine, Plan, SpecError
from armillary.spec.layout import PRECISIONS

THIS_MACHINE = "laptop_2core"
PREFERRED = ("bfloat16", "float16", "float32")
"""The precision that is planned for unless said: the first that the device has a peak of."""
SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_S = 1000 * 365 * 86400.0


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A plan to make, ready to be made; `asked` are the layouts of which is asked why not.

    `errors` are those of the predictions where runs were measured.
    """

    target: Target
    machine: Machine
    software: Software
    wish: Wish
    asked: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)

    def make(self) -> Plan:
        """The plan.

        Raises: `SpecError` if there is none.
        """
        made = plan(self.target, self.machine, self.software, self.wish)
        answers = tuple(
            why_not(words, made, self.target, self.machine, self.software, self.wish)
            for words in self.asked
        )
        return replace(made, why_not=answers, errors=self.errors)


@dataclass(frozen=True, kw_only=True)
class PlanWords:
    """The options of the word `plan` as they were typed; 0 and "" where they were not."""

    machine: str = ""
    devices: int | None = None
    at_most: int | None = None
    batch: int | None = None
    objective: str = ""
    deadline: str = ""
    budget: str = ""
    steps: int | None = None
    samples: int | None = None
    epochs: int | None = None
    fix: str = ""
    precision: str = ""
    software: str = "armillary"
    wide: bool = False
    top: int = 10
    efficiency: float = 0.8
    options: Mapping[str, str] = field(default_factory=dict)


def plan_request(
    target_word: str, words: PlanWords, asked: tuple[str, ...] = (), data: Path | None = None
) -> PlanRequest:
    """What the words ask for.

    Raises: `SpecError` on whatever is unknown or impossible before a model is read.
    """
    machine = load_machine(words.machine or THIS_MACHINE)
    software, errors = as_it_runs(programs.load(words.software), machine.device)
    fixed = Fixed.parse(words.fix)
    for layout in asked:
        Fixed.parse(layout)
    devices, uses_all = _devices(words, machine)
    precisions = _precisions(words, fixed, machine.device)
    if not 0 < words.efficiency <= 1:
        raise SpecError(
            "--efficiency",
            f"{words.efficiency}",
            "an efficiency is above 0 and at most 1",
            "use a value such as 0.8",
        )
    for name in ("batch", "steps", "samples", "epochs", "top"):
        _positive(f"--{name}", getattr(words, name))
    target = find_target(target_word, words.options, data)
    batch = words.batch if words.batch is not None else target.global_batch_size
    if not batch:
        raise SpecError(
            "--batch",
            "missing",
            f"{target_word} names no global batch size, and a step has one",
            "add the samples of one optimiser step, such as --batch 1536",
        )
    limits = Limits(
        deadline_s=_seconds(words.deadline),
        budget_usd=_dollars(words.budget),
        num_steps=_steps(words, target, batch),
    )
    wish = Wish(
        num_devices=devices,
        global_batch_size=batch,
        objective=words.objective or _objective(limits),
        precisions=precisions,
        fixed=fixed,
        limits=limits,
        uses_all=uses_all,
        wide=words.wide,
        num_shown=words.top,
        least_efficiency=words.efficiency,
    )
    return PlanRequest(
        target=target,
        machine=machine,
        software=software,
        wish=wish,
        asked=asked,
        errors=errors,
    )


def as_it_runs(software: Software, device: Device) -> tuple[Software, Mapping[str, float]]:
    """`software` with the constants fitted on measured runs, and the errors that the fit left.

    Without fitted constants it is as its file says, and nothing is known of its errors.
    """
    try:
        return calibrated(software, device.name), calibration().errors or {}
    except FileNotFoundError:
        return software, {}


def _objective(limits: Limits) -> str:
    """What a limit leaves to wish for: with a deadline alone the cheapest, else the fastest."""
    return "cost" if limits.deadline_s < inf and limits.budget_usd == inf else "time"


def _devices(words: PlanWords, machine: Machine) -> tuple[int, bool]:
    """The most devices, and whether all of them are to be used."""
    for name, value in (("--devices", words.devices), ("--at-most", words.at_most)):
        if value is not None and not 1 <= value <= machine.num_ranks:
            raise SpecError(
                name,
                f"{value:,}",
                f"{machine.name} has 1 to {machine.num_ranks:,} devices: {machine.num_nodes:,} "
                f"node{'s' if machine.num_nodes > 1 else ''} of {machine.ranks_per_node}",
                f"use 1 to {machine.num_ranks:,}, or a larger machine (`armillary machines`)",
            )
    if words.devices is not None and words.at_most is not None:
        raise SpecError(
            "--at-most",
            f"{words.at_most:,} beside --devices {words.devices:,}",
            "--devices says how many there are, --at-most up to how many are used",
            "give one of the two",
        )
    return words.devices or words.at_most or machine.num_ranks, words.at_most is None


def _precisions(words: PlanWords, fixed: Fixed, device: Device) -> tuple[str, ...]:
    """What may be chosen: what is said, or the preferred one that the device has a peak of.

    On a CPU that is float32, as training takes it there unless told otherwise.
    """
    if "precision" in fixed.words:
        return (fixed.words["precision"],)
    if words.precision:
        chosen = tuple(dict.fromkeys(p.strip() for p in words.precision.split(",") if p.strip()))
        for name in chosen:
            if name not in PRECISIONS:
                raise SpecError(
                    "--precision",
                    repr(name),
                    f"a precision is one of {', '.join(PRECISIONS)}",
                    "use one or several of them, with commas between",
                )
        return chosen
    preferred = PREFERRED[-1:] if device.torch_device == "cpu" else PREFERRED
    known = [p for p in preferred if device.peak_flops_per_s.get(p, 0.0) > 0]
    return (known[0] if known else preferred[-1],)


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise SpecError(
            name, f"{value}", f"{name} is at least 1", f"use {name} with a positive number"
        )


def _seconds(text: str) -> float:
    """`2d`, `36h`, `90min` or `600s` in seconds; infinite if empty."""
    if not text:
        return inf
    for unit in sorted(SECONDS, key=len, reverse=True):
        number = text.strip().removesuffix(unit)
        if number != text.strip():
            value = _number(number)
            if value is not None and 0 < value * SECONDS[unit] <= LONGEST_S:
                return value * SECONDS[unit]
    raise SpecError(
        "--deadline",
        repr(text),
        "a deadline is a number and one of s, min, h and d",
        "write it as 2d, 36h or 90min",
    )


def _dollars(text: str) -> float:
    """`50000usd` or `50000` in dollars; infinite if empty."""
    if not text:
        return inf
    value = _number(text.strip().lower().removesuffix("usd").replace(",", ""))
    if value is None or value <= 0:
        raise SpecError(
            "--budget",
            repr(text),
            "a budget is a number of dollars",
            "write it as 50000usd",
        )
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if value == value and abs(value) != inf else None


def _steps(words: PlanWords, target: Target, batch: int) -> int:
    """The optimiser steps of the whole training, 0 if it was not said."""
    said = [n for n in ("steps", "samples", "epochs") if getattr(words, n) is not None]
    if len(said) > 1:
        raise SpecError(
            f"--{said[1]}",
            f"given beside --{said[0]}",
            "the length of a training is said once",
            "leave one of them out",
        )
    if words.steps is not None:
        return words.steps
    if words.samples is not None:
        return -(-words.samples // batch)
    if words.epochs is None:
        return 0
    if not target.num_samples:
        raise SpecError(
            "--epochs",
            f"{words.epochs} of {target.name}, whose data are not known",
            "an epoch is all samples of a recipe's training split",
            "use --steps or --samples",
        )
    return words.epochs * -(-target.num_samples // batch)
