"""Ranks that die, hang or raise while a layout is proven: told as such, and the next is proven."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from armillary.spec import Layout
from armillary.step.recipe import load_recipe
from armillary.verify import ranks as ranks_room
from armillary.verify.check import EQUAL, FAILED, Checker
from armillary.verify.prepare import Prepared, prepare
from armillary.verify.program import Program, Trace, run
from armillary.verify.ranks import Ranks
from tests.parity.runs import CASES


def on_rank_1_along_data(layout: Layout) -> bool:
    return "data" in layout.degrees and os.environ.get("RANK") == "1"


def dies(program: Program, layout: Layout) -> Trace:
    if on_rank_1_along_data(layout):
        os.kill(os.getpid(), signal.SIGKILL)
    return run(program, layout)


def hangs(program: Program, layout: Layout) -> Trace:
    if on_rank_1_along_data(layout):
        time.sleep(3600)
    return run(program, layout)


def raises(program: Program, layout: Layout) -> Trace:
    if on_rank_1_along_data(layout):
        raise MemoryError("of this rank")
    return run(program, layout)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks(job_timeout_s=12.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(load_recipe(str(CASES / "mlp.py")), num_steps=1)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (dies, "the process is gone"),
        (hangs, "no answer in 12 s"),
        (raises, "MemoryError: of this rank"),
    ],
)
def test_a_rank_that_fails_fails_its_layout_alone(
    ranks: Ranks, prepared: Prepared, job: Any, said: str
) -> None:
    checker = Checker(prepared, ranks, job=job)
    failed, next_one = (checker.check(Layout.parse(words)) for words in ("data=2", "sharded=2"))
    assert failed.state == FAILED and failed.reason == said
    assert failed.suspects == ("data",)
    assert next_one.state == EQUAL, next_one.reason


def meet() -> int:
    """Join the other ranks; how many there are."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        return dist.get_world_size()
    finally:
        dist.destroy_process_group()


def test_ranks_meet_on_another_port_if_theirs_is_taken(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port may be taken between being found free and being listened on."""
    find = ranks_room._free_port
    with socket.create_server(("0.0.0.0", 0)) as other:
        ports = iter([other.getsockname()[1]])
        monkeypatch.setattr(ranks_room, "_free_port", lambda: next(ports, None) or find())
        assert ranks.run(2, meet) == [2, 2]
    assert next(ports, None) is None
