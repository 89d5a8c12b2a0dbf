"""Trace the published models and store their graphs: `python -m benchmarks.trace_references`.

Names after it choose some. Each module of benchmarks/reference_models is traced without memory,
held against the published figures, and written to src/armillary/models/references.
"""

import argparse
import importlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any

import torch

from armillary.models import references, trace
from armillary.spec import ModelGraph, Op
from armillary.spec.document import Document
from benchmarks.reference_models.reference import Reference

FOLDER = Path(references.__file__).parent
ROOMS = (
    *("residual", "detection", "segmentation", "climate", "speech", "translation"),
    *("language", "diffusion", "recommendation", "forecast", "molecules", "protein"),
)
SAMPLES = 2
"""Batch norms need more than one."""


def all_references() -> Iterator[Reference]:
    """The published models, room by room."""
    for room in ROOMS:
        yield from importlib.import_module(f"benchmarks.reference_models.{room}").REFERENCES


def trace_reference(reference: Reference) -> ModelGraph:
    """The graph of a published model, under its name."""
    with torch.device("meta"):
        module = reference.build()
    if reference.stretch is None:
        graph = _traced(module, reference.batch(SAMPLES))
    else:
        batch, short, long, length = reference.stretch
        graphs = [_traced(module, batch(SAMPLES, steps)) for steps in (short, long)]
        graph = stretched(*graphs, (length - short) / (long - short))
    return replace(graph, name=reference.name)


def _traced(module: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> ModelGraph:
    return trace(module, lambda model, given: model(*given), batch, SAMPLES)


def stretched(short: ModelGraph, long: ModelGraph, times: float) -> ModelGraph:
    """The graph of a loop `times` as far beyond `short` as `long` is, where all grows evenly."""
    segments = [
        replace(one, ops=_stretched_ops(one.ops, two.ops, times))
        for one, two in zip(short.segments, long.segments, strict=True)
    ]
    return replace(short, segments=tuple(segments))


def _stretched_ops(short: tuple[Op, ...], long: tuple[Op, ...], times: float) -> tuple[Op, ...]:
    """Ops that both have, each number on the line through both; ops of single steps by their place.

    Equal ops of a module are folded, so both lists differ only where a step's ops have a size that
    depends on the step, as the first and the last.
    """
    others = _by_form(long)
    found = []
    for form, ops in _by_form(short).items():
        if len(ops) != len(others[form]):
            raise ValueError(f"{form}: {len(ops)} and {len(others[form])} kinds of call")
        found += [_line(one, two, times) for one, two in zip(ops, others[form], strict=True)]
    return tuple(found)


def _by_form(ops: tuple[Op, ...]) -> dict[tuple[str, ...], list[Op]]:
    forms: dict[tuple[str, ...], list[Op]] = {}
    for op in ops:
        forms.setdefault((op.path, op.kind, op.name), []).append(op)
    return forms


def _line(one: Op, two: Op, times: float) -> Op:
    values: dict[str, Any] = {}
    for place in fields(Op):
        a, b = getattr(one, place.name), getattr(two, place.name)
        if a != b and not isinstance(a, (bool, str)):
            values[place.name] = type(a)(round(a + times * (b - a)))
    return replace(one, **values)


def _usual(place: Field[Any]) -> Any:
    """What a field is where nothing is said; MISSING where something must be."""
    return place.default_factory() if place.default_factory is not MISSING else place.default


def slim(value: Any) -> Any:
    """A document as plain values, without what is as its class has it anyway."""
    if isinstance(value, Document):
        entries = ((place, getattr(value, place.name)) for place in fields(value))  # type: ignore[arg-type]
        return {p.name: slim(entry) for p, entry in entries if entry != _usual(p)}
    if isinstance(value, Mapping):
        return {key: slim(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [slim(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write(reference: Reference, graph: ModelGraph) -> Path:
    """Store a graph with where it is from; a line a segment or an op."""
    stored = references.Reference(
        name=reference.name,
        source=reference.source,
        input=reference.input,
        graph=graph,
        figures=reference.figures,
        published_parameters=reference.num_parameters or 0.0,
        published_flops=reference.forward_flops or 0.0,
        tolerance=reference.tolerance,
        units=reference.units,
        varies=reference.varies,
        traced=f"benchmarks/trace_references.py, torch {torch.__version__.split('+')[0]}",
    )
    path = FOLDER / f"{reference.name}.json"
    text = json.dumps({"schema": stored.schema} | slim(stored), separators=(",", ":"))
    path.write_text(text.replace('{"path"', '\n{"path"') + "\n")
    return path


def tell(reference: Reference, graph: ModelGraph) -> str:
    """Parameters and flops beside the published ones."""
    words = [f"{reference.name:24}", f"{graph.num_parameters / 1e6:10.3f} M"]
    if reference.num_parameters:
        words.append(f"({100 * (graph.num_parameters / reference.num_parameters - 1):+.2f} %)")
    words.append(f"{graph.total('flops') / 1e9:10.3f} Gflop")
    if reference.forward_flops:
        words.append(f"({100 * (graph.total('flops') / reference.forward_flops - 1):+.2f} %)")
    return " ".join(words)


def main() -> None:
    """Trace those that are named, or all, and store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args().names
    for reference in all_references():
        if chosen and reference.name not in chosen:
            continue
        start = time.perf_counter()
        graph = trace_reference(reference)
        path = write(reference, graph)
        size, taken_s = path.stat().st_size // 1000, time.perf_counter() - start
        print(tell(reference, graph), f"{size:5d} kB {taken_s:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
