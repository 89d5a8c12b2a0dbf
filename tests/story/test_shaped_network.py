"""Do collectives, and a training step, over a link of known rate and latency take what is said?

Two nodes of this computer with a link of our own between them (`tests/link.py`), a rank of gloo on
each. The link holds up nearly all of a step, so that a busy computer changes little.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from armillary import machines, networks
from armillary.networks import Burst, contended_seconds
from armillary.spec import Machine
from armillary.spec.rehearsal import Rehearsal
from tests.link import ADDRESSES, NotHere, TwoNodes, two_nodes

pytestmark = pytest.mark.slow
LATENCY_S, BYTES_PER_S = 0.004, 12.5e6
WIDTH, NUM_LAYERS, BATCH_SIZE = 512, 4, 8
# Not those in which gloo sends before it says that it is ready to receive: of two ranks the one
# that comes first then waits behind the other's data, or not, as it happens (docs/networks.md).
MEASURED = [
    f"{name}:{size}"
    for name in ("all_reduce", "reduce_scatter_tensor", "broadcast")
    for size in (1 << 18, 1 << 20)
] + ["all_reduce:4194304"]
CASE = f'''
"""Layers whose gradients take long to send against what they compute."""
import torch
from torch import nn

settings = {{"epochs": 1, "global_batch_size": {BATCH_SIZE}}}


def model():
    layers = [nn.Linear({WIDTH}, {WIDTH}) for _ in range({NUM_LAYERS})]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def data():
    samples = torch.randn(96, {WIDTH})
    return {{"train": samples, "validation": samples[:8]}}


def loss(model, batch):
    return (model(batch) - batch).square().mean()


def optimizer(params):
    return torch.optim.SGD(params, lr=1e-2)
'''
LITTLE = f"""
title = "Two nodes with a shaped link"
num_nodes = {{ value = 2, source = "two namespaces" }}
ranks_per_node = {{ value = 1, source = "one rank each" }}

[device]
name = "core_of_this"
like = "epyc_core"
[device.peak_flops_per_s]
source = "the passes of a serial step, as timed"
float32 = FLOPS_PER_S

[[levels]]
name = "machine"
network = "fat_tree"
latency_s = {{ value = {LATENCY_S}, source = "as shaped" }}
link_bytes_per_s = {{ value = {BYTES_PER_S}, source = "as shaped" }}
taper = {{ value = 1.0, source = "one link" }}
shape = {{ fraction = {{ value = 1.0, source = "as shaped" }} }}
"""


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    """Two nodes with the link between them."""
    with ExitStack() as until_the_end:
        try:
            link = two_nodes(latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S)
            found = until_the_end.enter_context(link)
        except NotHere as why:
            pytest.skip(f"needs two network namespaces and root: {why}")
        yield found


def little(folder: Path, flops_per_s: float) -> Path:
    """The file of the machine that the two nodes are."""
    path = folder / "little.toml"
    path.write_text(LITTLE.replace("FLOPS_PER_S", f"{flops_per_s:.4g}"))
    return path


def on_both(nodes: TwoNodes, words: list[list[str]], folder: Path) -> str:
    """Run Python with the words of each node, on both at once; what the first one prints."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29442"}
    ranks = [
        subprocess.Popen(
            [*nodes.inside(node), sys.executable, *words[node]],
            env=os.environ | nodes.variables(node) | place | {"RANK": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for node in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return said[0][0]


def predicted_s(machine: Machine, asked: str) -> float:
    """Seconds of a collective by the closed form, which the flows agree with."""
    name, size = asked.split(":")
    burst = Burst(collective=name, bytes=float(size), spans=((2, 1),))
    flows_s = float(contended_seconds(machine, [burst]).seconds[0])
    closed_s = float(networks.seconds(machine, name, float(size), [(2, 1)]))
    assert flows_s == pytest.approx(closed_s, rel=0.01)
    return closed_s


def test_real_collectives_take_what_is_predicted(nodes: TwoNodes, tmp_path: Path) -> None:
    machine = machines.load(str(little(tmp_path, 1e10)))
    program = str(Path(__file__).with_name("linked_rank.py"))
    words = [[program, str(rank), ADDRESSES[0], *MEASURED] for rank in range(2)]
    measured = json.loads(on_both(nodes, words, tmp_path))
    predicted = {asked: predicted_s(machine, asked) for asked in MEASURED}
    assert predicted == pytest.approx(measured, rel=0.15)


def armillary(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "armillary.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def steps(folder: Path, runs: str) -> list[dict[str, object]]:
    """The lines of all steps but the first three of the one run there."""
    [path] = (folder / runs).glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step" and line["step"] > 3]


def test_a_real_step_takes_what_its_rehearsal_says(nodes: TwoNodes, tmp_path: Path) -> None:
    """A step of `data=2`, of which the passes are measured on one rank and the link is known."""
    (tmp_path / "case.py").write_text(CASE)
    armillary(tmp_path, "train", "case.py", "--runs", "alone", "-q")
    passes_s = statistics.median(
        line["phases_s"]["forward"] + line["phases_s"]["backward"]  # type: ignore[index]
        for line in steps(tmp_path, "alone")
    )
    machine = str(little(tmp_path, 6.0 * NUM_LAYERS * WIDTH**2 * BATCH_SIZE / passes_s))
    words = ("--machine", machine, "--devices", "2", "--batch", str(BATCH_SIZE))
    fix = ("--fix", "data=2,precision=float32", "--out", "plan.json", "-q")
    armillary(tmp_path, "plan", "case.py", *words, *fix)
    told = armillary(tmp_path, "rehearse", "plan.json", "--machine", machine, "--json")
    predicted = Rehearsal.from_json(told).predicted_step_s
    program = ["-m", "armillary.cli", "train", "case.py", "--layout", "data=2", "--runs", "both"]
    on_both(nodes, [[*program, "-q"]] * 2, tmp_path)
    measured = statistics.median(float(line["step_s"]) for line in steps(tmp_path, "both"))  # type: ignore[arg-type]
    assert predicted > 10 * passes_s, "the link holds the step"
    assert predicted == pytest.approx(measured, rel=0.15)
