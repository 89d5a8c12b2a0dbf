"""Measured training runs as a table has them: one row a run, and why a row cannot be used."""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from armillary.models import references
from armillary.spec import SpecError

SAMPLES = ("samples", "images", "sequences", "volumes", "items", "molecules", "nodes")
"""What sources call the samples of a batch."""
GIB = 2**30
GB = 1e9
SHORT_COLUMNS = {
    "GPUs": "n_gpus",
    "global batch": "global_batch",
    "micro batch": "micro_batch",
    "hidden size": "hidden",
    "attention heads": "heads",
    "layers": "layers",
    "sequence length": "seq_len",
    "tensor parallelism": "tp",
    "data parallelism": "dp",
    "pipeline parallelism": "pp",
}
"""The columns of vTrain's tables (github.com/VIA-Research/vTrain) in our words."""
SHORT_STEP = "iteration time (ms)"
SHORT_ROW = {
    "source_group": "vtrain",
    "source": "vTrain",
    "machine": "vTrain",
    "gpu": "A100-SXM-80GB",
    "gpus_per_node": "8",
    "model": "GPT",
    "kind": "dense-transformer",
    "vocab": "51200",
    "recompute": "full",
    "precision": "fp16",
    "schedule": "1f1b",
    "year": "2023",
    "quality": "A",
    "outcome": "ok",
}
"""What vTrain's tables leave out: Megatron-DeepSpeed with full recomputing (arXiv 2312.12391)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A measured run. Numbers that the row does not give are 0, words are empty.

    `step_s` and `memory_bytes` are measured; `sequence` is the degree of what divides a sample,
    `zero` the stage of sharding, -1 where it is not given; `cuts_norms` is None where nothing is
    said of it.
    """

    id: str
    source_group: str
    source: str
    year: int
    machine: str
    gpu: str
    gpus_per_node: int
    num_devices: int
    model: str
    kind: str
    num_parameters: float
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    seq: int
    vocab: int
    global_batch_size: int
    micro_batch_size: int
    tensor: int
    pipeline: int
    stages_per_rank: int
    sequence: int
    expert: int
    data: int
    zero: int
    cuts_norms: bool | None
    recompute: str
    precision: str
    precision_detail: str
    schedule: str
    optimizer: str
    software: str
    notes: str
    quality: str
    outcome: str
    memory_basis: str
    step_s: float
    memory_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A row that was left out, and why."""

    id: str
    why: str


def read_runs(path: Path) -> tuple[list[Run], list[Skipped]]:
    """The runs of a CSV file, and the rows that are no runs.

    It has the columns of the project's tables (benchmarks/data), or those of vTrain's.

    Raises: `SpecError` if the file cannot be read or has neither.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file, skipinitialspace=True) if any(row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(
            "--validate", str(error), "the runs are a CSV file", "give the path of one"
        ) from error
    named = [{str(k).strip("# "): str(v or "").strip() for k, v in row.items()} for row in rows]
    if named and SHORT_STEP in named[0]:
        named = [_widened(row, index) for index, row in enumerate(named, start=1)]
    elif not named or not {"id", "gpu", "model"} <= set(named[0]):
        raise SpecError(
            "--validate",
            f"{path} has the columns {', '.join(named[0]) if named else 'of no row'}",
            "a table of runs has at least id, gpu, model and what was measured",
            "see benchmarks/data/README.md for the columns",
        )
    runs, skipped = [], []
    for index, row in enumerate(named, start=1):
        try:
            runs.append(_run(row))
        except ValueError as error:
            name = row.get("id") or f"row {index}"
            skipped.append(Skipped(id=name, why=str(error)))
    return runs, skipped


def _widened(row: Mapping[str, str], index: int) -> dict[str, str]:
    found = SHORT_ROW | {ours: row.get(theirs, "") for theirs, ours in SHORT_COLUMNS.items()}
    found["id"] = f"vtrain-{index}"
    found["kv_heads"] = found["heads"]
    step = _number(row, SHORT_STEP)
    found["step_time_s"] = str(step / 1e3) if step else ""
    return found


def _number(row: Mapping[str, str], name: str, least: float = 0.0) -> float:
    """The number in a cell, 0 for an empty one.

    Raises: `ValueError` if it is none, or below `least`.
    """
    text = row.get(name, "").rstrip("%")
    if not text or text.lower() == "nan":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name} is {text}, which cannot be")
    return value


def _run(row: Mapping[str, str]) -> Run:
    def whole(name: str) -> int:
        return int(_number(row, name))

    def word(name: str) -> str:
        return row.get(name, "")

    zero = word("zero_stage")
    return Run(
        id=word("id"),
        source_group=word("source_group"),
        source=word("source"),
        year=whole("year"),
        machine=word("machine"),
        gpu=word("gpu"),
        gpus_per_node=whole("gpus_per_node"),
        num_devices=whole("n_gpus"),
        model=word("model"),
        kind=word("kind"),
        num_parameters=1e9 * _number(row, "params_b"),
        layers=whole("layers"),
        hidden=whole("hidden"),
        ffn=whole("ffn_hidden"),
        heads=whole("heads"),
        kv_heads=whole("kv_heads"),
        seq=whole("seq_len"),
        vocab=whole("vocab"),
        global_batch_size=int(_global_batch(row)),
        micro_batch_size=whole("micro_batch"),
        tensor=whole("tp"),
        pipeline=whole("pp"),
        stages_per_rank=whole("vpp"),
        sequence=whole("cp"),
        expert=whole("ep"),
        data=whole("dp"),
        zero=int(_number(row, "zero_stage")) if zero else -1,
        cuts_norms=word("sequence_parallel") == "1" if word("sequence_parallel") else None,
        recompute=word("recompute"),
        precision=word("precision"),
        precision_detail=word("precision_detail"),
        schedule=word("schedule"),
        optimizer=word("optimizer"),
        software=word("software"),
        notes=word("notes"),
        quality=word("quality"),
        outcome=word("outcome") or "ok",
        memory_basis=word("memory_basis"),
        step_s=_step_s(row),
        memory_bytes=_memory_bytes(row),
    )


def _step_s(row: Mapping[str, str]) -> float:
    """Seconds of an optimiser step: as printed, or from a printed rate of samples or tokens."""
    rates: tuple[Callable[[], float], ...] = (
        lambda: _number(row, "step_time_s"),
        lambda: _number(row, "step_time_derived_s"),
        lambda: _ratio(
            _number(row, "global_batch") * _number(row, "seq_len"),
            _number(row, "tokens_per_s_per_gpu") * _number(row, "n_gpus"),
        ),
        lambda: _ratio(_global_batch(row) * _units(row), _number(row, "samples_per_s")),
    )
    return next((found for rate in rates if (found := rate())), 0.0)


def _global_batch(row: Mapping[str, str]) -> float:
    """Samples of a step: as given, or as the ranks that split the batch take them together."""
    given = _number(row, "global_batch")
    return given or _number(row, "micro_batch") * _number(row, "dp")


def _units(row: Mapping[str, str]) -> float:
    """How many of what the row counts, such as tokens, are in a sample; 0 where that is not known.

    The stored graph of its model says (models/references).
    """
    unit = row.get("sample_unit", "").split("/s")[0]
    name = references.find(row.get("model", ""), int(_number(row, "seq_len")))
    if not name or row.get("kind") == "moe":
        return 0.0
    return references.read(name).units.get(unit, 1.0 if unit in SAMPLES else 0.0)


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _memory_bytes(row: Mapping[str, str]) -> float:
    """Bytes, from GiB or, where the source printed GB, from these; see `memory_basis`."""
    basis = row.get("memory_basis", "")
    return _number(row, "memory_gib") * (GB if "GB" in basis else GIB)
