"""Ten faults in one small parallel program: which does a type checker find, and which `verify`?

`spmd_types` types every tensor of a program along every axis of a mesh and checks the transitions,
on one process, without numbers. `armillary.verify` runs the program on ranks and compares numbers.
The program below is written for `spmd_types`, with its collectives and annotations, and `verify`
takes the same functions. Run: `python -m benchmarks.rivals_verify`, with spmd_types installed.
"""

import functools
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

# Shapes: B samples, D features, H hidden, V words
NUM_SAMPLES, NUM_FEATURES, NUM_HIDDEN, NUM_WORDS = 8, 4, 6, 10
SPLIT, EVEN = (5, 3), (4, 4)  # samples of the two ranks along data
CLIP_NORM = 0.01
RESULTS = Path(__file__).parent / "results" / "verify_rivals.md"
INPUTS, ALL = "inputs", "all"

FAULTS = {
    "row output not summed": "a partial sum is used as the whole",
    "column input not converted": "forward is right; the input's gradient is a partial sum",
    "summed over the wrong group": "the all-reduce of a partial sum is along data, not tensor",
    "gradients not reduced": "each rank along data keeps its own",
    "gradients added, not averaged": "off by the degree",
    "mean of means": "5 and 3 samples weigh the same",
    "vocabulary offset wrong": "the second rank's words begin one too early",
    "shards swapped": "a rank loads the other's columns of the second matrix",
    "norm of one shard": "clipping takes the norm of what the rank holds",
    "same samples twice": "both ranks along data train on the first samples",
}


# ------------------------------------------------------------------------------- the program
def whole() -> dict[str, torch.Tensor]:
    """The parameters and the batch of the serial program."""
    draw = functools.partial(torch.randn, dtype=torch.float64)
    torch.manual_seed(0)
    return {
        "table": draw(NUM_WORDS, NUM_FEATURES),
        "scale": draw(NUM_FEATURES),
        "first": draw(NUM_HIDDEN, NUM_FEATURES),
        "second": draw(NUM_FEATURES, NUM_HIDDEN),
        "words": torch.randperm(NUM_WORDS)[:NUM_SAMPLES],
        "target": draw(NUM_SAMPLES, NUM_FEATURES),
    }


PARAMETERS = {"table": 0, "scale": None, "first": 0, "second": 1}  # and the dim that is cut


def serial() -> dict[str, torch.Tensor]:
    """Gradients of one step, clipped, and the loss; words in, a pair of linear maps, squares."""
    given = whole()
    for name in PARAMETERS:
        given[name].requires_grad_()
    hidden = torch.tanh(F.linear(given["table"][given["words"]] * given["scale"], given["first"]))
    loss = (F.linear(hidden, given["second"]) - given["target"]).square().sum(1).mean()
    loss.backward()
    gradients = {name: given[name].grad for name in PARAMETERS}
    norm = (gradients["first"].square().sum() + gradients["second"].square().sum()).sqrt()
    return {name: g * (CLIP_NORM / norm) for name, g in gradients.items()} | {"norm": norm}


def held(fault: str, data: int, tensor: int) -> dict[str, torch.Tensor]:
    """What the rank at these coordinates holds of it all."""
    given = whole()
    if fault == "same samples twice":
        data = 0
    for name in ("words", "target"):
        # of unequal parts a sum over the wrong group is no silent fault: it crashes
        parts = EVEN if fault == "summed over the wrong group" else SPLIT
        given[name] = given[name].split(parts)[data].clone()
    for name, dim in PARAMETERS.items():
        if dim is not None:
            is_swapped = fault == "shards swapped" and name == "second"
            shards = given[name].chunk(2, dim)
            given[name] = shards[1 - tensor if is_swapped else tensor].clone()
        given[name].requires_grad_()
    return given


def compute(
    fault: str, given: dict[str, torch.Tensor], mesh: Any, coordinates: tuple[int, int], notes: str
) -> dict[str, torch.Tensor]:
    """The step as one rank; `notes` says how much is annotated: inputs, all, or nothing."""
    import spmd_types as spmd

    data, tensor = mesh.get_group("data"), mesh.get_group("tensor")

    def note(value: torch.Tensor, along_data: Any, along_tensor: Any, level: str = ALL) -> None:
        if notes and (level == INPUTS or notes == ALL):
            spmd.assert_type(value, {"data": along_data, "tensor": along_tensor})

    for name in ("words", "target"):
        note(given[name], spmd.V, spmd.I, INPUTS)
    for name, dim in PARAMETERS.items():
        note(given[name], spmd.R, spmd.I if dim is None else spmd.V, INPUTS)
    rows = embed(fault, given, tensor, coordinates[1])
    note(rows, spmd.V, spmd.I)
    inner = rows * given["scale"]
    if fault != "column input not converted":
        inner = spmd.convert(inner, tensor, src=spmd.I, dst=spmd.R)
    parts = F.linear(torch.tanh(F.linear(inner, given["first"])), given["second"])
    found = parts
    if fault != "row output not summed":
        group = data if fault == "summed over the wrong group" else tensor
        found = spmd.all_reduce(parts, group, dst=spmd.I)
    note(found, spmd.V, spmd.I)
    weight = 1 / len(rows) if fault == "mean of means" else 2 / sum(SPLIT)
    loss = (found - given["target"]).square().sum() * weight
    spmd.reinterpret(loss, data, src=spmd.V, dst=spmd.P).backward()
    if notes == INPUTS:  # as its documentation has it: what reduces gradients stays outside
        return {}
    return reduce_and_clip(fault, given, data, tensor, note)


def embed(fault: str, given: dict[str, torch.Tensor], tensor: Any, place: int) -> torch.Tensor:
    """Rows of the table, of which the rank knows half: zero for other words, then added."""
    import spmd_types as spmd

    first = place * NUM_WORDS // 2 - (place if fault == "vocabulary offset wrong" else 0)
    words = spmd.convert(given["words"], tensor, src=spmd.I, dst=spmd.R)
    here = words - first
    is_known = (here >= 0) & (here < NUM_WORDS // 2)
    rows = F.embedding(here * is_known, given["table"]) * is_known.unsqueeze(-1)
    return spmd.all_reduce(rows, tensor, dst=spmd.I)


def reduce_and_clip(
    fault: str, given: dict[str, torch.Tensor], data: Any, tensor: Any, note: Callable[..., None]
) -> dict[str, torch.Tensor]:
    """The gradients averaged over data, and clipped by the norm of the two matrices."""
    import spmd_types as spmd

    gradients = {}
    for name, dim in PARAMETERS.items():
        lies = spmd.I if dim is None else spmd.V
        gradient = given[name].grad
        note(gradient, spmd.P, lies)
        if fault != "gradients not reduced":
            gradient = spmd.all_reduce(gradient, data, src=spmd.P, dst=spmd.R)
            gradient = gradient if fault == "gradients added, not averaged" else gradient / 2
        note(gradient, spmd.R, lies)
        gradients[name] = gradient
    norm = gradients["first"].square().sum() + gradients["second"].square().sum()
    if fault != "norm of one shard":
        norm = spmd.all_reduce(norm, tensor, dst=spmd.R)
    norm = norm.sqrt()
    note(norm, spmd.R, spmd.R)
    return gradients | {"norm": norm}


# --------------------------------------------------------------------------- the two checkers
def on_ranks(fault: str) -> dict[str, torch.Tensor]:
    """The program as one of four ranks, with whole gradients put together for the comparison."""
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    place = mesh.get_local_rank("data"), mesh.get_local_rank("tensor")
    found = compute(fault, held(fault, *place), mesh, place, "")
    norm = found.pop("norm").detach()
    joined = {}
    for name, gradient in found.items():
        clipped, dim = gradient.detach() * (CLIP_NORM / norm), PARAMETERS[name]
        if dim is not None:
            shards = [torch.empty_like(clipped) for _ in range(2)]
            dist.all_gather(shards, clipped.contiguous(), group=mesh.get_group("tensor"))
            clipped = torch.cat(shards, dim)
        joined[name] = clipped
    return joined | {"norm": norm}


@dataclass(frozen=True, slots=True)
class Said:
    """Whether a checker found something, and what it said first."""

    caught: bool
    words: str


def by_types(fault: str, notes: str) -> Said:
    """What spmd_types says of the program, annotated as `notes` says, as the last of four ranks."""
    import spmd_types as spmd
    from spmd_types.checker import typecheck
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=3, world_size=4, store=FakeStore())
    try:
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        given = held(fault, 1, 1)
        with spmd.set_current_mesh(mesh), typecheck(local=True):
            compute(fault, given, mesh, (1, 1), notes)
    except spmd.SpmdTypeError as error:
        return Said(True, str(error).splitlines()[0])
    finally:
        dist.destroy_process_group()
    return Said(False, "")


def by_numbers(fault: str) -> Said:
    """What verify says of the program as it runs, with no annotation."""
    import armillary

    verdict = armillary.verify(serial, functools.partial(on_ranks, fault), ranks=4)
    worst = verdict.differences[0]
    return Said(not verdict, f"{worst.name}: {worst.difference:.1e}; {worst.pattern}")


def main() -> None:
    """Write the table."""
    rows, seconds = [], {"types": 0.0, "numbers": 0.0}
    for fault in ("", *FAULTS):
        started = time.perf_counter()
        bare, inputs, everything = (by_types(fault, notes) for notes in ("", INPUTS, ALL))
        seconds["types"] += (time.perf_counter() - started) / 3
        started = time.perf_counter()
        numbers = by_numbers(fault)
        seconds["numbers"] += time.perf_counter() - started
        rows.append((fault, bare, inputs, everything, numbers))
        print(*rows[-1], sep="\n    ")
    RESULTS.write_text(page(rows, seconds))


def page(rows: list[tuple[str, Said, Said, Said, Said]], seconds: dict[str, float]) -> str:
    """The table of what was caught, and why not."""
    mark = {True: "caught", False: "not caught"}
    clean, *faulty = rows
    assert not clean[2].caught and not clean[3].caught and not clean[4].caught, clean
    version = importlib.metadata.version("spmd_types")
    counts = [sum(row[i].caught for row in faulty) for i in (2, 3, 4)]
    lines = [
        f"# Ten faults: spmd_types {version} and armillary verify",
        "",
        "Written by `python -m benchmarks.rivals_verify`. One program of two axes (data=2, "
        "tensor=2): words, an",
        "embedding cut by words, a pair of linear maps, uneven parts, gradients averaged and "
        "clipped.",
        "`spmd_types` checks it on one process without numbers; `verify` runs it on 4 gloo ranks.",
        "",
        "| fault | spmd_types as documented: inputs and parameters annotated, forward checked | "
        "spmd_types, every value and gradient annotated too | verify, nothing annotated | what "
        "verify says |",
        "|---|---|---|---|---|",
    ]
    for fault, _, inputs, everything, numbers in faulty:
        lines.append(
            f"| **{fault}**: {FAULTS[fault]} | {mark[inputs.caught]} | {mark[everything.caught]} | "
            f"{mark[numbers.caught]} | {numbers.words} |"
        )
    lines += [
        f"| caught of ten | {counts[0]} | {counts[1]} | {counts[2]} | |",
        "",
        "The right program passes all three. Without any annotation spmd_types refuses the right "
        f'program too: "{clean[1].words}"',
        "",
        f"Time: {seconds['types'] / len(rows):.2f} s a program for spmd_types, "
        f"{seconds['numbers'] / len(rows):.1f} s for verify, most of which starts ranks anew.",
        "",
        WHY,
    ]
    return "\n".join(lines)


WHY = """\
What the difference is made of:

- A type says whether ranks hold the same, parts, or partial sums, not which. Faults of *number*
  (a factor, a weight, an offset), of *place* (another rank's shard) and of *data* keep all types.
- Types see what is annotated. A dropped sum at an output, a gradient that is never reduced and a
  norm of one shard are found where the person wrote down what the value has to be.
- Types need no ranks and no run, hold for every size at once, and name the line. `verify` names the
  tensor and its pattern, at one size, on the CPU; what it did not run it did not prove.
- A pipeline is no single program, so spmd_types leaves it out (its documentation, "MPMD").
"""


if __name__ == "__main__":
    main()
