"""From the words of `armillary rehearse` to a plan, its machine, and what is asked of them."""

from dataclasses import dataclass, replace
from pathlib import Path

from armillary.machines import load as load_machine
from armillary.rehearse.jitter import Jitter
from armillary.rehearse.rehearsing import Wanted
from armillary.spec import Machine, Plan, SpecError, read_plan
from armillary.spec.workload import Workload

MOST_SAMPLES, MOST_DAYS = 100_000, 3650.0


@dataclass(frozen=True, kw_only=True)
class RehearsalRequest:
    """A rehearsal that is ready to be made."""

    plan: Plan
    workload: Workload
    machine: Machine
    wanted: Wanted


@dataclass(frozen=True, kw_only=True)
class RehearsalWords:
    """The options of the word `rehearse` as they were typed."""

    machine: str = ""
    samples: int = 64
    seed: int = 0
    jitter: str = ""
    slow_device: tuple[str, ...] = ()
    slow_link: tuple[str, ...] = ()
    background: float = 0.0
    days: float = 0.0
    changes: bool = True
    flows: bool = True


def rehearsal_request(path: Path, words: RehearsalWords) -> RehearsalRequest:
    """What the words ask for of the plan in the file at `path`.

    Raises: `SpecError` on a file that is no plan, a machine that is another, or a number that
    cannot be.
    """
    layout, plan = read_plan(path)
    if plan is None:
        raise SpecError(
            str(path),
            f"a layout alone ({layout})",
            "a rehearsal needs a whole plan: its machine, and what a step asks of it",
            "write one: armillary plan TARGET --machine NAME --out plan.json",
        )
    if plan.workload is None:
        raise SpecError(
            f"{path}: workload",
            "missing",
            "a plan says what its step asks of ranks and links (spec/workload.py)",
            "write the plan anew with this version: armillary plan ... --out plan.json",
        )
    machine = _machine(plan, words.machine)
    _check(words, plan)
    jitter = Jitter.parse(words.jitter, plan.workload.spread)
    jitter = replace(
        jitter,
        slow_devices=_slow("--slow-device", words.slow_device, plan.num_devices, "rank"),
        slow_links=_slow(
            "--slow-link", words.slow_link, -(-plan.num_devices // machine.ranks_per_node), "node"
        ),
        background=words.background,
    )
    told = words.jitter or f"pass={jitter.pass_spread:g},device={jitter.device_spread:g}"
    return RehearsalRequest(
        plan=plan,
        workload=plan.workload,
        machine=machine,
        wanted=Wanted(
            jitter=jitter,
            jitter_words=told,
            num_samples=words.samples,
            seed=words.seed,
            days=words.days,
            changes=words.changes,
            flows=words.flows,
        ),
    )


def _machine(plan: Plan, word: str) -> Machine:
    """The machine that was planned for, or the one that is named instead.

    Raises: `SpecError` if the plan was made for another version of it.
    """
    try:
        machine = load_machine(word or plan.machine)
    except SpecError as error:
        if word:
            raise
        raise SpecError(
            "plan.machine",
            f"{plan.machine!r}, which is not among ours: {error.found}",
            "a rehearsal plays the links of the machine that was planned for",
            "name its file: --machine ours.toml",
        ) from None
    if not word and plan.machine_sha256 and machine.sha256 != plan.machine_sha256:
        raise SpecError(
            "plan.machine",
            f"{plan.machine} has other numbers than when it was planned for",
            "a rehearsal is held against its plan, so both are of one machine",
            f"plan anew, or say --machine {plan.machine} to play on it as it is now",
        )
    return machine


def check_rank(rank: int | None, plan: Plan) -> None:
    """Raise `SpecError` where there is no such rank in the plan."""
    if rank is not None and not 0 <= rank < plan.num_devices:
        raise SpecError(
            "--rank",
            f"{rank:,}",
            f"the plan has the ranks 0 to {plan.num_devices - 1:,}",
            "name one of them",
        )


def _check(words: RehearsalWords, plan: Plan) -> None:
    bounds = {
        "--samples": (words.samples, 0, MOST_SAMPLES),
        "--days": (words.days, 0, MOST_DAYS),
        "--seed": (words.seed, 0, 2**63 - 1),
        "--background": (words.background, 0, 0.9),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise SpecError(
                name, f"{value}", f"{name} is {least} to {most:,}", "use a number within these"
            )


def _slow(option: str, words: tuple[str, ...], number: int, unit: str) -> dict[int, float]:
    """`12:1.5` as the 12th of so many units, one and a half times slower; 2 where nothing is said.

    Raises: `SpecError` if it is not one of them.
    """
    found = {}
    for word in words:
        place, _, factor = word.partition(":")
        try:
            index, slower = int(place), float(factor or 2.0)
        except ValueError:
            index, slower = -1, 0.0
        if not 0 <= index < number or not 1 <= slower < 1e6:
            raise SpecError(
                option,
                repr(word),
                f"a {unit} is 0 to {number - 1:,}, and slower by a factor of at least 1",
                f"write it as {option} {min(3, number - 1)}:1.5",
            )
        found[index] = slower
    return found
