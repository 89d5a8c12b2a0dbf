"""Every discovered family keeps its promise, whatever its name."""

import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from armillary.models import families
from armillary.models.store import load_graph
from armillary.spec import ModelGraph, SpecError

NAMES = sorted(families.discover())
NEEDED = {"layers": 4, "hidden": 64, "heads": 4, "seq": 32, "vocab": 256}
NEEDED |= {"experts": 8, "chosen": 2, "expert_ffn": 48}
DEEP = {"layers": 128, "hidden": 25600, "heads": 160, "seq": 2048, "vocab": 51200}


def words(name: str, **sizes: Any) -> str:
    """The family with all that it asks for, and `sizes` where it has them."""
    known = {f.name: f for f in fields(families.discover()[name])}  # type: ignore[arg-type]
    needed = {n: NEEDED[n] for n, f in known.items() if f.default is MISSING}
    chosen = needed | {n: v for n, v in sizes.items() if n in known}
    return f"{name}:{','.join(f'{n}={v}' for n, v in chosen.items())}"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def graph(name: str) -> ModelGraph:
    return families.parse(words(name))


def test_there_are_families() -> None:
    assert {"gpt", "llama", "moe", "deepseek", "bert"} <= set(NAMES)


def test_parameters_are_all_told(graph: ModelGraph) -> None:
    """Blocks and glue make the model; its ops read every parameter, and hold each once."""
    glue = sum(glue.parameter_bytes for glue in graph.glue)
    assert glue + sum(block.parameter_bytes for block in graph.blocks) == graph.parameter_bytes
    held = sum(
        op.parameter_bytes * op.count * segment.repeats
        for segment in graph.segments
        for op in segment.ops
        if not op.shares_parameters
    )
    assert held == graph.parameter_bytes
    assert graph.num_parameters * graph.element_bytes == graph.parameter_bytes


def test_segments_are_the_chain(graph: ModelGraph) -> None:
    of_blocks = [segment for segment in graph.segments if segment.path]
    assert sorted(path for s in of_blocks for path in s.paths) == sorted(graph.chain)
    assert all(s.repeats == len(s.paths) and s.path == s.paths[0] for s in of_blocks)
    assert all(graph.chain[s.after] == s.path for s in of_blocks)
    assert [s.after for s in graph.segments if not s.path] == [0, len(graph.chain)]


def test_flops_are_conserved(graph: ModelGraph) -> None:
    summed = sum(
        op.flops * op.count * segment.repeats for segment in graph.segments for op in segment.ops
    )
    assert graph.total("flops") == summed == sum(graph.chain_flops)


def test_no_size_is_negative(graph: ModelGraph) -> None:
    for segment in graph.segments:
        for op in segment.ops:
            sizes = {n: v for n, v in op.to_dict().items() if isinstance(v, int | float)}
            assert min(sizes.values()) >= 0, (op.path, op.name)
            assert op.unscaled_saved_bytes <= op.saved_bytes


def test_a_graph_is_read_as_it_was_written(graph: ModelGraph, tmp_path: Path) -> None:
    graph.write(tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph


def test_half_the_precision_is_half_the_bytes(name: str) -> None:
    whole, half = (families.parse(words(name, dtype=d)) for d in ("float32", "bfloat16"))
    assert half.parameter_bytes * 2 == whole.parameter_bytes
    assert half.total("flops") == whole.total("flops")
    scaled = [g.total("saved_bytes") - g.total("unscaled_saved_bytes") for g in (whole, half)]
    assert scaled[0] == 2 * scaled[1]
    assert half.total("unscaled_saved_bytes") == whole.total("unscaled_saved_bytes")


def test_a_model_of_a_trillion_parameters_is_made_at_once(name: str) -> None:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        families.parse(words(name, **DEEP))
        best = min(best, time.process_time() - start)
    assert best < 0.05


def test_an_unknown_size_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="hidden") as caught:
        families.parse(f"{words(name)},hiden=64")
    assert caught.value.where == f"{name}.hiden"


@pytest.mark.parametrize(
    ("size", "value", "found"),
    [
        ("layers", 0, "0"),
        ("hidden", -64, "-64"),
        ("vocab", 10**10, "10000000000"),
        ("seq", "long", "'long'"),
        ("dtype", "float31", "'float31'"),
    ],
)
def test_an_impossible_size_is_refused(name: str, size: str, value: Any, found: str) -> None:
    with pytest.raises(SpecError) as caught:
        families.parse(words(name, **{size: value}))
    assert caught.value.where == f"{name}.{size}" and found in caught.value.found


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("gtp:layers=2", "model"),
        ("gpt:layers=2", "gpt.hidden"),
        ("gpt:layers=2,hidden=64,heads=5,seq=8,vocab=64", "gpt.heads"),
        ("llama:layers=2,hidden=64,heads=4,kv_heads=3,seq=8,vocab=64", "llama.kv_heads"),
        ("deepseek:chosen=257", "deepseek.chosen"),
        ("deepseek:dense=62", "deepseek.dense"),
        ("gpt:layers", "gpt"),
        ("gpt:layers=2,hidden=64,heads=4,seq=8,vocab=64,positions=both", "gpt.positions"),
        ("gpt:layers=2,hidden=64,heads=4,seq=8,vocab=64,fused=no,kv_heads=2", "gpt.kv_heads"),
        ("", "model"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(text: str, where: str) -> None:
    with pytest.raises(SpecError) as caught:
        families.parse(text)
    assert caught.value.where == where and caught.value.fix


def test_no_family_needs_torch() -> None:
    probe = (
        "import sys; from armillary.models import families, store\n"
        "for name in families.discover(): pass\n"
        "families.parse('gpt:layers=2,hidden=64,heads=4,seq=8,vocab=64')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
