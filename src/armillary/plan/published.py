"""A published run as a plan sees it: its model's graph, machine, software and layout."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from armillary import machines
from armillary.axes import discover
from armillary.models import families, references
from armillary.plan import calibration
from armillary.plan import software as programs
from armillary.plan.grid import Grid
from armillary.plan.runs import Run
from armillary.plan.software import Software
from armillary.spec import Layout, Machine, ModelGraph, SpecError

PRECISIONS = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "fp4": "float4",
    "tf32": "tf32",
    "fp32": "float32",
}
SCHEDULES = {
    "": "1f1b",
    "1f1b": "1f1b",
    "gpipe": "gpipe",
    "1f1b-interleaved": "interleaved_1f1b",
    "zb-1p": "interleaved_zero_bubble",
    "zb-2p": "zb_h2",
    "v-half": "v_half",
    "dualpipe": "dualpipev",
}
"""Our schedules for the words of the tables."""
USUAL_VOCAB = 51200
HIDDEN_BY_ASYNC = 0.4
"""Share of the tensor axis' messages that asynchronous tensor parallelism hides.

Source: pytorch/torchtitan benchmarks/asyncTP_llama3_h100_2025-06, with and without it in bfloat16:
27.43 and 25.11 s, 2.807 and 2.555 s.
"""
HEAD_DIMS = (("qwen3", 128), ("gpt ?oss", 64))
"""Widths of a head that are not hidden / heads, by model: the published configuration files."""
ROUTING = (
    ("gpt.oss.* (gb.*fp8 26.0[6-9]|b300)", False, True),
    ("gpt.oss.* gb200 bf16", True, False),
    ("gpt.oss", False, False),
    (".* 25.09", False, False),
    ("qwen3.(30b.* h100|235b.* (b|h).00).* 25", True, False),
    ("qwen3.30b.* b200.* 25", False, False),
    ("qwen3.235b.* h100", True, False),
    ("qwen3.30b.* h100.* bf16 26.0[6-9]", True, True),
    ("(qwen|deepseek).* (gb.*|b300) fp8 26.0[6-9]", True, True),
    ("deepseek.* b200 fp8 26", True, True),
    ("kimi.* (b|h).00", False, False),
    ("", False, True),
)
"""Of Megatron-Bridge's recipes, by model, device, precision and release, the first that fits:
whether messages to experts go beside other work, and a token once to a rank or node (HybridEP,
DeepEP).

Source: NVIDIA-NeMo/Megatron-Bridge, `moe_a2a_overlap` and `moe_flex_dispatcher_backend` of
scripts/performance at v0.1.0rc4, v0.2.2, v0.3.1 and v0.4.2, `overlap_moe_expert_parallel_comm` and
the same backend of src/megatron/bridge/perf_recipes at 067f987d.
"""
HEAD_WIDTHS = ((1024, (64, 96, 128, 80)), (3072, (96, 128, 64, 80)), (10**9, (128, 96, 64, 80)))
"""Widths of a head where a row does not say how many there are, by hidden size up to.

Source: Brown et al. 2020, arXiv 2005.14165, table 2.1; Narayanan et al. 2021, arXiv 2104.04473,
table 1.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What `price` takes for a run, and what was assumed where the row says nothing."""

    run: Run
    graph: ModelGraph
    machine: Machine
    software: Software
    grid: Grid
    global_batch_size: int
    assumed: tuple[str, ...] = ()


def subject(run: Run, *, calibrated: bool = True) -> Subject:
    """The plan's view of a run; its software with the fitted constants unless `calibrated` is not.

    Raises: `SpecError` or `ValueError` where the row lacks what a plan needs, or does not fit.
    """
    assumed: list[str] = []
    if run.tensor > 1 and run.kind == "cnn":
        raise ValueError("the run cuts convolutions by channels, which no axis of ours does")
    machine = machine_of(run)
    program = software_of(run)
    if calibrated:
        program = calibration.calibrated(program, machine.device.name)
    data = _data(run)
    micro = _micro_batch(run, data, assumed)
    stages = max(run.pipeline, 1) * max(run.stages_per_rank, 1)
    if run.layers % stages:
        with_ends = (run.layers + 2) % stages == 0
        program = replace(program, deals="with ends" if with_ends else "balanced")
    if "async TP" in run.notes and "vanilla" not in run.notes:
        program = replace(program, hides_regions=HIDDEN_BY_ASYNC)
    if re.search("LoRA", run.notes[:60] + run.model):
        program = replace(program, trains_weights=False)
    if run.kind == "moe" and run.source_group.startswith("nv-bridge"):
        program = _routing(run, program)
    if _varies(run):
        program = replace(program, spread=program.spread_of_lengths)
    return Subject(
        run=run,
        graph=_own_norms(graph_of(run, program)),
        machine=machine,
        software=program,
        grid=_grid(run, program, data, micro),
        global_batch_size=run.global_batch_size,
        assumed=tuple(assumed),
    )


def software_of(run: Run) -> Software:
    """The generation of software of a run: as the row says, or as its source ran."""
    words = " | ".join((run.source_group, run.id, run.source, run.kind))
    return programs.of_source(run.software, words, run.year)


def _routing(run: Run, program: Software) -> Software:
    """The program as the recipe of the run sends tokens to experts."""
    release = re.search(r"\b(2\d\.\d\d)\b", run.source)
    words = f"{run.model} {run.gpu} {run.precision} {release.group(1) if release else '26.08'}"
    found = next(r for r in ROUTING if re.match(r[0], words, re.IGNORECASE))
    overlaps = found[1] and "communication overlap off" not in run.notes
    return replace(program, overlaps_experts=overlaps, sends_once=found[2])


def machine_of(run: Run) -> Machine:
    """The machine of a run, as wide as the run.

    Raises: `SpecError` on a device that we have not.
    """
    per_node = run.gpus_per_node or min(run.num_devices, 8)
    found = machines.for_run(run.gpu, per_node, run.machine, run.num_devices)
    inner = found.levels[0] if found.levels else None
    if inner is None or inner.num_ranks <= 8 or run.num_devices <= inner.num_ranks:
        return found
    # racks of a number that does not divide the run's are taken evenly filled
    racks = -(-run.num_devices // inner.num_ranks)
    filled = replace(inner, num_ranks=-(-run.num_devices // racks))
    return replace(found, levels=(filled, *found.levels[1:]))


def _data(run: Run) -> int:
    """The ranks that split the batch."""
    if run.num_devices < 1:
        raise ValueError("n_gpus is not given")
    inner = max(run.tensor, 1) * max(run.pipeline, 1) * max(run.sequence, 1)
    if run.data and run.data * inner == run.num_devices:
        return run.data
    if run.num_devices % inner:
        raise ValueError(f"{run.num_devices} devices are not cut evenly by tp x pp x cp = {inner}")
    return run.num_devices // inner


def _micro_batch(run: Run, data: int, assumed: list[str]) -> int:
    if not run.global_batch_size:
        raise ValueError("global_batch is not given")
    if run.global_batch_size % data:
        raise ValueError(f"global_batch {run.global_batch_size} is not cut evenly by dp = {data}")
    if run.micro_batch_size:
        return min(run.micro_batch_size, run.global_batch_size // data)
    if run.pipeline > 1 or run.tensor > 1:
        assumed.append("micro batch 1")
        return 1
    assumed.append("no gradient accumulation")
    return run.global_batch_size // data


# ------------------------------------------------------------------------------------------ model
def graph_of(run: Run, program: Software) -> ModelGraph:
    """The graph of a run's model: of a family by its sizes, or a stored one.

    Raises: `SpecError` on sizes that do not fit, `ValueError` where none is known.
    """
    sized = bool(run.layers and run.hidden and run.seq)
    if run.kind in ("cnn", "rnn", "other", "") or not sized:
        found = references.for_row(run.model, run.kind, run.seq)
        if found is None:
            raise ValueError(f"no stored graph of {run.model!r}, and sizes are not given")
        return found
    return _family(_words(run, program))


def _varies(run: Run) -> bool:
    """Whether the samples of a run are of unlike lengths, as its stored model says."""
    name = "" if run.kind == "moe" else references.find(run.model, run.seq)
    return bool(name) and references.read(name).varies


_NORMS: dict[int, tuple[ModelGraph, ModelGraph]] = {}


def _own_norms(graph: ModelGraph) -> ModelGraph:
    """The graph of a program that norms over the samples of each rank alone."""
    if not graph.batch_norms:
        return graph
    found = _NORMS.setdefault(id(graph), (graph, replace(graph, batch_norms={})))
    return found[1]


@cache
def _family(words: str) -> ModelGraph:
    return families.parse(words)


def _words(run: Run, program: Software) -> str:
    """The family and its sizes in words."""
    heads = run.heads or _heads(run)
    sizes: dict[str, object] = {
        "layers": run.layers,
        "hidden": run.hidden,
        "heads": heads,
        "seq": run.seq,
        "vocab": run.vocab or USUAL_VOCAB,
        "ffn": run.ffn or 4 * run.hidden,
    }
    name = run.model.lower()
    if "bert" in name:
        fused = str(program.has_fused_attention).lower()
        return _said("bert", sizes | {"fused": fused, "dropout": program.dropout})
    sizes["kv_heads"] = run.kv_heads or heads
    head_dim = next((d for pattern, d in HEAD_DIMS if re.search(pattern, name)), 0)
    if head_dim:
        sizes["head_dim"] = head_dim
    if run.kind == "moe":
        return _routed(run, sizes, program)
    if _is_gated(run, sizes):
        return _said("llama", sizes)
    if "mpt" in name:
        sizes |= {"bias": "false", "positions": "none"}
    fused = str(program.has_fused_attention).lower()
    return _said("gpt", sizes | {"fused": fused, "dropout": program.dropout})


def _heads(run: Run) -> int:
    """Heads of a usual width, as models of that size have, that the tensor axis shares evenly."""
    widths = next(found for most, found in HEAD_WIDTHS if run.hidden <= most)
    usual = (run.hidden // width for width in widths if run.hidden % width == 0)
    return next((h for h in usual if h % max(run.tensor, 1) == 0), max(1, run.hidden // 128))


def _said(family: str, sizes: dict[str, object]) -> str:
    return f"{family}:" + ",".join(f"{name}={value}" for name, value in sizes.items())


def _is_gated(run: Run, sizes: dict[str, object]) -> bool:
    """Whether feed-forwards have three matrices: the count of parameters says, or the name."""
    if re.search(r"lama|internlm|agpt|mistral|qwen|falcon-?h", run.model.lower()):
        return True
    if not run.num_parameters:
        return False
    head = run.hidden // int(str(sizes["heads"]))
    attention = run.hidden * head * 2 * (int(str(sizes["heads"])) + int(str(sizes["kv_heads"])))
    words = run.hidden * (run.vocab or USUAL_VOCAB)

    def misses(matrices: int) -> float:
        blocks = run.layers * (attention + matrices * run.hidden * int(str(sizes["ffn"])))
        return min(abs(blocks + times * words - run.num_parameters) for times in (1, 2))

    return misses(3) < misses(2)


def _routed(run: Run, sizes: dict[str, object], program: Software) -> str:
    """Families of experts, whose sizes stand in the notes."""

    def told(pattern: str, otherwise: int) -> int:
        found = re.search(pattern, run.notes)
        return int(found.group(1)) if found else otherwise

    named = re.search(r"-E(\d+)\b", run.model)
    experts = int(named.group(1)) if named else told(r"(\d+) (?:routed )?experts", 0)
    if not experts:
        raise ValueError(f"the notes of {run.model!r} do not say how many experts there are")
    chosen = told(r"top-(\d+)", 2)
    if "GShard" in run.model:
        words = {"experts": experts, "chosen": chosen, "fused": "false"}
        words |= {"group": told(r"group size (\d+)", run.seq), "ffn": _told_by_count(run, experts)}
        return _said("gpt", sizes | words | {"dropout": program.dropout})
    inner = told(r"(?:moe_ffn|expert ffn) (\d+)", run.ffn)
    if "MLA" in run.notes:
        own = {"experts": experts, "chosen": chosen, "expert_ffn": inner}
        own |= {"shared": told(r"\+ (\d+) shared", 1), "dense": told(r"first (\d+) layers", 1)}
        return _said("deepseek", {k: v for k, v in sizes.items() if k != "kv_heads"} | own)
    own = {"experts": experts, "chosen": chosen, "expert_ffn": inner}
    return _said("moe", {k: v for k, v in sizes.items() if k != "ffn"} | own)


def _told_by_count(run: Run, experts: int) -> int:
    """The inner width of GShard's feed-forwards: as the row says, or twice that.

    What fits the count of parameters: half of the blocks have experts of two matrices each.
    """
    width = run.ffn or 4 * run.hidden
    half = run.layers // 2
    rest = 4 * run.layers * run.hidden**2 + run.hidden * (run.vocab or USUAL_VOCAB)

    def misses(inner: int) -> float:
        experts_and_dense = (half * experts + run.layers - half) * 2 * run.hidden * inner
        return abs(rest + experts_and_dense - run.num_parameters)

    if not run.num_parameters:
        return width
    return min((width, 2 * width), key=misses)


# ----------------------------------------------------------------------------------------- layout
def _grid(run: Run, program: Software, data: int, micro: int) -> Grid:
    """The run's layout, alone in a grid, with the ranks numbered as Megatron does."""
    expert = _largest(lambda e: data % e == 0, run.expert) if run.kind == "moe" else 1
    left = data // expert
    zero = run.zero if run.zero >= 0 else program.zero
    zero = 2 if "ZeRO-2-like" in run.notes else zero
    shards = left if zero > 0 else 1
    if "HSDP (" in run.notes or "groups of 8" in run.notes or "8 groups" in run.notes:
        shards = _largest(lambda n: left % n == 0, 8)
    words = (
        f"pipeline={max(run.pipeline, 1)},data={left // shards},sharded={shards},expert={expert},"
        f"sequence={max(run.sequence, 1)},tensor={max(run.tensor, 1)}"
    )
    degrees = Layout.parse(words).degrees
    axes = tuple(discover())
    schedule = SCHEDULES.get(run.schedule, "1f1b") if run.pipeline > 1 else "1f1b"
    per_rank = max(run.stages_per_rank, 1)
    if schedule == "interleaved_1f1b" and run.layers:
        per_rank = max(1, min(per_rank, (run.layers + 2) // max(run.pipeline, 1)))
        schedule = schedule if per_rank > 1 else "1f1b"
    stages = {"interleaved_1f1b": str(per_rank), "v_half": "2", "zbv": "2", "dualpipev": "2"}
    cuts_norms = program.cuts_norms if run.cuts_norms is None else run.cuts_norms
    return Grid(
        degrees={a: np.array([degrees.get(a, 1)], dtype=np.int64) for a in axes},
        orders=((*(a for a in axes if a not in degrees), *degrees),),
        order=np.zeros(1, dtype=np.int64),
        micro_batch_sizes=np.array([micro], dtype=np.int64),
        schedules=((schedule, stages.get(schedule, "1")),),
        recomputes=(run.recompute or "none",),
        zeros=(str(max(zero, 1)),),
        regions=(("cut" if cuts_norms else "whole", program.loss),),
        precisions=(_precision(run),),
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that `fits`."""
    return next(n for n in range(max(most, 1), 0, -1) if fits(n))


def _precision(run: Run) -> str:
    found = PRECISIONS.get(run.precision, "")
    if "rowwise" in run.notes and re.search("-rowwise-", run.id):
        found = "bfloat16"  # no faster then, by a defect: pytorch/torchtitan issue 1207
    if "Trainium" in run.gpu and found == "float32":
        found = "tf32"  # the compiler's --auto-cast, on where nobody says otherwise
    if not found:
        found = "bfloat16" if run.precision else "float16"
        if not run.precision and re.search("tensorflow|_tf|-tf", run.id):
            found = "float32"
    device = machines.find_device(run.gpu).device
    other = {"float16": "bfloat16", "bfloat16": "float16", "tf32": "float32"}
    if device.peak_flops_per_s.get(found, 0.0) <= 0 and found in other:
        return other[found]
    return found


__all__ = ["SpecError", "Subject", "graph_of", "machine_of", "software_of", "subject"]
