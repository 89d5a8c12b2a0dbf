"""Start-up: how long until `armillary --help` is out, and until a first step is done."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ratios import interval_of

TINY = Path(__file__).parent / "cases" / "tiny.py"
CLI = [sys.executable, "-c", "from armillary.cli import main; main()"]
CONTENDERS = {
    "python alone": [sys.executable, "-c", "pass"],
    "armillary --help": [*CLI, "--help"],
    "import torch": [sys.executable, "-c", "import time, torch; print('stepped at', time.time())"],
    "torch by hand": [
        sys.executable,
        "-c",
        (
            "import torch\n"
            "from benchmarks.cases import tiny\n"
            "from torch.utils.data import DataLoader\n"
            "model = tiny.model()\n"
            "optimizer = tiny.optimizer(model.parameters())\n"
            "for batch in DataLoader(tiny.data()['train'], 8):\n"
            "    optimizer.zero_grad()\n"
            "    tiny.loss(model, batch).backward()\n"
            "    optimizer.step()\n"
        ),
    ],
    "armillary train, 1 rank": [*CLI, "train", str(TINY)],
    "armillary train, 2 ranks": [*CLI, "train", str(TINY), "--layout", "data=2"],
}


def measure(num_repeats: int) -> dict[str, Any]:
    """Seconds by contender, from the process's start to its end, or to the first step done."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(num_repeats + 1):
            names = list(CONTENDERS) if i % 2 == 0 else list(reversed(CONTENDERS))
            for name in names:
                taken_s = _time(CONTENDERS[name], folder)
                if i:  # the first round fills the disk's cache
                    seconds[name].append(taken_s)
    beyond = {
        name: interval_of(
            [a - b for a, b in zip(seconds[name], seconds["import torch"], strict=True)]
        ).to_dict()
        for name in seconds
        if name.startswith(("armillary train", "torch by hand"))
    }
    found = {
        "seconds": {name: interval_of(taken).to_dict() for name, taken in seconds.items()},
        "best_s": {name: min(taken) for name, taken in seconds.items()},
        "first_step_beyond_import_torch_s": beyond,
        "help_imports_torch": _help_imports_torch(),
    }
    for name, taken in seconds.items():
        print(f"{name}: median {statistics.median(taken):.2f} s, best {min(taken):.2f} s")
    return found


def _time(words: list[str], folder: str) -> float:
    started_s = time.time()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=_environment())
    ended_s = time.time()
    if done.returncode:
        raise SystemExit(f"{words} left with {done.returncode}\n{done.stderr[-4000:]}")
    stamp = re.search(r"stepped at ([\d.]+)", done.stdout + done.stderr)
    return (float(stamp[1]) if stamp else ended_s) - started_s


def _help_imports_torch() -> bool:
    program = (
        "import sys\nfrom armillary.cli import main\n"
        "sys.argv = ['armillary', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=_environment()
    )
    return done.stdout.strip().endswith("True")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
