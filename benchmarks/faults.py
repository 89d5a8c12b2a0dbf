"""Does a run that is killed again and again end with the bits of one that was left alone?

`python -m benchmarks.faults --kills 50` trains a small case on ranks of this host and kills, with
SIGKILL and at random moments: any rank, rank 0, a rank that is starting, a rank while a checkpoint
is written, and the command itself with its agent, which is then started again with --resume as a
batch system would. It prints what was injected, survived, and lost, and exits with 1 if anything
was.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CASE = Path(__file__).parents[1] / "tests" / "fault" / "cases" / "trouble.py"
KINDS = ("rank", "first rank", "starting", "writing", "agent")
NUM_SAMPLES = 64
WAIT_S = 120.0


@dataclass(slots=True)
class Faults:
    """What was done to a run, and what became of it."""

    injected: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0
    num_steps: int = 0
    is_bitwise: bool = False
    are_losses_equal: bool = False
    num_lost: int = 0
    num_repeated: int = 0

    @property
    def is_survived(self) -> bool:
        """Whether nothing was lost, repeated or changed."""
        return self.is_bitwise and self.are_losses_equal and not self.num_lost + self.num_repeated

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.injected[kind]} {kind}" for kind in KINDS)
        survived = self.injected.total() if self.is_survived else "not all"
        return (
            f"faults injected {self.injected.total()} ({kinds}), survived {survived}\n"
            f"samples lost {self.num_lost}, repeated {self.num_repeated}\n"
            f"final weights and optimiser state bitwise equal: {self.is_bitwise}; "
            f"losses of all {self.num_steps} steps equal: {self.are_losses_equal}\n"
            f"{self.wall_s:.0f} s"
        )


def kill_a_run(
    folder: Path,
    *,
    num_kills: int,
    seed: int,
    epochs: int,
    layout: str = "data=2",
    kinds: tuple[str, ...] = KINDS,
    pause_s: float = 0.02,
) -> Faults:
    """Train undisturbed and disturbed in `folder`; how they compare."""
    words = ["--layout", layout, "--set", f"epochs={epochs}", "--set", f"pause_s={pause_s}"]
    words += ["--set", f"restarts={num_kills}"]  # some kills in succession come while it starts
    alone = Command(["train", str(CASE), "--runs", str(folder / "alone"), *words], folder / "said")
    alone.finish()
    moments, started_s = random.Random(seed), time.monotonic()
    faults = Faults()
    order = [kinds[i % len(kinds)] for i in range(num_kills)]
    moments.shuffle(order)
    words = ["train", str(CASE), "--runs", str(folder / "killed"), *words]
    disturbed = Command(words, folder / "said")
    for kind in order:
        if not _inject(disturbed, kind, moments, folder / "killed"):
            break
        faults.injected[kind] += 1
        if disturbed.process.poll() is not None:
            disturbed = _as_a_batch_system(folder / "killed", disturbed)
    disturbed.finish()
    faults.wall_s = time.monotonic() - started_s
    _compare(faults, _only(folder / "alone"), _only(folder / "killed"), epochs)
    return faults


class Command:
    """The command `armillary`, running; what it says as errors goes to the file `said`."""

    def __init__(self, words: list[str], said: Path) -> None:
        self.words, self.said = words, said
        with said.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "armillary", *words, "-q"],
                env=os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Wait for its end, which is to be a good one."""
        self.process.wait(timeout=10 * WAIT_S)
        if self.process.returncode != 0:
            raise SystemExit(f"{self.words}: {self.process.returncode}\n{self.said.read_text()}")

    def ranks(self) -> list[int]:
        """The processes of its ranks, in the order of their start: its grandchildren, or itself."""
        if "data=1" in self.words:
            return [self.process.pid]
        parents = dict(_parents())
        servers = {pid for pid, parent in parents.items() if parent == self.process.pid}
        return sorted(pid for pid, parent in parents.items() if parent in servers)


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if text[0] != "Z":
            yield int(entry.name), int(text[1])


def _inject(command: Command, kind: str, moments: random.Random, runs: Path) -> bool:
    """Wait for the moment and kill; False if the run was over before it came."""
    least = 1 if "data=1" in command.words else 2
    if not _wait(command, lambda: len(command.ranks()) >= least):
        return False
    if kind != "starting":
        saved = _newest(runs)
        if not _wait(command, lambda: _newest(runs) > saved):
            return False
        time.sleep(moments.uniform(0.0, 0.5))
    else:
        time.sleep(moments.uniform(0.0, 0.8))
    if kind == "writing" and not _wait(
        command, lambda: any(runs.glob("*/checkpoints/.step-*[0-9]")), every_s=0.0
    ):
        return False
    ranks = command.ranks()
    if kind == "agent" or ranks == [command.process.pid]:
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        return True
    if not ranks or command.process.poll() is not None:
        return _inject(command, kind, moments, runs) if command.process.poll() is None else False
    victim = ranks[0] if kind == "first rank" else moments.choice(ranks)
    os.kill(victim, signal.SIGKILL)
    return _wait(command, lambda: victim not in command.ranks())


def _as_a_batch_system(runs: Path, killed: Command) -> Command:
    """Start the command again: with --resume once anything was saved, else as it was."""
    if _newest(runs) >= 0:
        layout = killed.words[killed.words.index("--layout") + 1]
        words = ["train", "--resume", str(_only(runs)), "--layout", layout]
        return Command(words, killed.said)
    return Command(killed.words, killed.said)


def _wait(command: Command, condition: Any, every_s: float = 0.01) -> bool:
    """Wait until `condition` holds; False if the command ends before."""
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        if command.process.poll() is not None:
            return False
        if time.monotonic() > give_up_s:
            command.process.kill()
            raise SystemExit(f"{command.words}: it hangs")
        time.sleep(every_s)
    return True


def _newest(runs: Path) -> int:
    names = [path.name for path in runs.glob("*/checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def _only(runs: Path) -> Path:
    [path] = [path.parent for path in runs.glob("*/manifest.json")]
    return path


def _compare(faults: Faults, alone: Path, killed: Path, epochs: int) -> None:
    import torch

    from armillary.train.folder.run_folder import RunFolder

    ours, theirs = final_state(killed), final_state(alone)
    faults.is_bitwise = ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    lines = [line for line in RunFolder(killed).metrics() if line["kind"] == "step"]
    before = [line for line in RunFolder(alone).metrics() if line["kind"] == "step"]
    faults.num_steps = len(before)
    faults.are_losses_equal = [x["loss"] for x in lines] == [x["loss"] for x in before]
    seen = Counter(
        (line["epoch"], position)
        for line in lines
        for position in range(line["position"] - line["samples"], line["position"])
    )
    faults.num_repeated = sum(count - 1 for count in seen.values())
    faults.num_lost = epochs * NUM_SAMPLES - len(seen)


def final_state(run: Path) -> dict[str, Any]:
    """Every tensor of the newest checkpoint: parameters, buffers, optimiser state."""
    import torch
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from armillary.train.checkpoints.saved import checkpoint_path, load, saved_steps
    from armillary.train.checkpoints.shards import read_index

    folder = run / "checkpoints"
    path = checkpoint_path(folder, max(saved_steps(folder)))
    index = read_index(path)
    state: dict[str, Any] = {}
    tensors = {}
    for flat, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        inner = state
        *outer, last = index.planner_data[flat]
        for name in outer:
            inner = inner.setdefault(name, {})
        tensors[flat] = inner[last] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load(path, state, serial=True)
    return tensors


def main() -> None:
    """Kill a run as often as asked for, and say what became of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=250, help="of 8 steps each")
    parser.add_argument("--layout", default="data=2")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        faults = kill_a_run(
            Path(name),
            num_kills=asked.kills,
            seed=asked.seed,
            epochs=asked.epochs,
            layout=asked.layout,
        )
    print(faults)
    if asked.out:
        found = {"injected": dict(faults.injected), "wall_s": faults.wall_s} | {
            name: getattr(faults, name)
            for name in ("num_steps", "is_bitwise", "are_losses_equal", "num_lost", "num_repeated")
        }
        asked.out.write_text(json.dumps(found | {"load": os.getloadavg()[0]}, indent=1) + "\n")
    raise SystemExit(0 if faults.is_survived else 1)


if __name__ == "__main__":
    main()
