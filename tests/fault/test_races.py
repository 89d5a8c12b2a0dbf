"""What happens in one moment in a thousand, brought about on purpose: nothing is left to chance."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from armillary.step.workers import held_back, leave_stopping_to_the_rank
from armillary.train.start import own_ranks
from armillary.train.survive.watch import Watch

SAVED_S = 100.0
"""How long the rank had saved, of a limit of 300; a hang is two seconds."""


def saving(kind: type[Watch]) -> Watch:
    """The watch of a rank that has been saving for some time, as it may."""
    watch = kind(rank=0, hang_steps=5.0, least_s=2.0, ends=False)
    for step in range(1, 6):
        watch.stepped(step, 0.01)
    watch.tick("checkpoint", 300.0)
    watch._last_s = time.monotonic() - SAVED_S
    return watch


class LookedAtBetween(Watch):
    """Its thread looks after each single thing that `tick` writes."""

    looks = False
    seen: tuple[tuple[float, float], ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if self.looks and name.startswith("_"):
            self.__dict__["seen"] = (*self.seen, self.waiting())


class GetsOnBetween(Watch):
    """Its rank is done with saving in the moment in which the thread reads the limit."""

    is_done = False

    @property
    def limit_s(self) -> float:
        """As ever, but that the rank has just got on."""
        if self.is_done:
            self.is_done = False
            self.tick()
        return super().limit_s


def test_a_rank_that_has_saved_long_is_not_taken_for_hung_as_it_gets_on() -> None:
    watch = saving(LookedAtBetween)
    watch.looks = True
    watch.tick()
    watch.looks = False
    assert len(watch.seen) >= 3, "it was looked at between"
    assert all(waited_s <= limit_s for waited_s, limit_s in watch.seen), watch.seen


def test_nor_as_its_thread_looks() -> None:
    watch = saving(GetsOnBetween)
    waited_s, limit_s = watch.waiting()
    assert SAVED_S <= waited_s < limit_s == 300.0
    watch.is_done = True
    waited_s, limit_s = watch.waiting()
    assert waited_s <= limit_s == 2.0


@pytest.fixture
def other() -> Iterator[int]:
    """A process of somebody else's."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def sent(other: int) -> Iterator[list[tuple[int, int]]]:
    """The signals that would have been sent, by process; none is while this lasts."""
    found: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", lambda *words: found.append(words))
        yield found


def test_whoever_is_given_a_lost_ranks_number_is_not_killed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[int, int]], other: int
) -> None:
    """The rank `other` is seen to be gone, and then its number is there again; rank 1 stays."""
    monkeypatch.setattr(own_ranks, "SURVIVORS_LEAVE_S", 0.3)
    gone = iter([False])
    monkeypatch.setattr(own_ranks, "is_alive", lambda n: n != other or next(gone, True))
    for number in (other, os.getpid()):
        (tmp_path / str(number)).touch()
    give_up_s = time.monotonic() + 20.0
    with own_ranks._ending_survivors(tmp_path):
        while not sent and time.monotonic() < give_up_s:
            time.sleep(0.05)
    assert {number for number, _ in sent} == {os.getpid()}
    assert {kind for _, kind in sent} == {signal.SIGKILL}


def test_a_signal_to_stop_is_not_passed_on_to_the_numbers_of_a_life_that_is_over(
    tmp_path: Path, sent: list[tuple[int, int]], other: int
) -> None:
    ranks = tmp_path / "life" / own_ranks.RANKS
    ranks.mkdir(parents=True)
    with own_ranks._passing_on(tmp_path) as told:
        with own_ranks._ending_survivors(ranks):
            (ranks / str(other)).touch()
            signal.raise_signal(signal.SIGTERM)
            assert sent == [(other, signal.SIGTERM)], "in its life a rank is told"
        signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM] * 2 and len(sent) == 1
    assert (tmp_path / own_ranks.TOLD).exists(), "ranks that are about to start see this"


def _works(is_ready: object, born_s: float = 0.0) -> None:
    time.sleep(born_s)
    leave_stopping_to_the_rank(0)
    is_ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs to know who sent a signal")
def test_a_worker_meets_the_signals_of_its_rank_alone() -> None:
    """torch ends a worker that is stuck by SIGTERM; so does `timeout`, to all of a group."""
    fork = multiprocessing.get_context("fork")
    is_ready = fork.Event()
    worker = fork.Process(target=_works, args=(is_ready, 0.3))
    with held_back():
        worker.start()
    assert worker.pid is not None
    for name in ("TERM", "INT", "USR1"):  # before it has said that it leaves them to its rank
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert is_ready.wait(20)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive(), "told by somebody else"
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def test_a_signal_that_comes_as_workers_are_born_reaches_the_rank() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        with held_back():
            signal.raise_signal(signal.SIGUSR1)
            assert came == []
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
