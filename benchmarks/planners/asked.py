"""One question to a planner in a process of its own: seconds, CPU time and peak memory.

A planner's file is run by the interpreter that has the planner, reads one JSON object from its
input and writes one to its output. It imports nothing of ours, so that it runs wherever its planner
does: `answer` is what such a file calls when it is run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def ask(
    interpreter: str, script: Path, question: Mapping[str, Any], timeout_s: float = 3600.0
) -> dict[str, Any]:
    """What the planner in `script` answers, with `cpu_s`, `start_cpu_s` and `peak_bytes`.

    Raises: `RuntimeError` with its last words if it ends with an error.
    """
    done = subprocess.run(
        [interpreter, str(script)],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | ONE_THREAD,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name}: {done.stderr.strip()[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def answer(answers: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Read the question, answer it, and add what it cost."""
    question = json.loads(sys.stdin.read())
    start_cpu_s = time.process_time()
    found = dict(answers(question))
    told = {
        "cpu_s": time.process_time() - start_cpu_s,
        "start_cpu_s": start_cpu_s,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(found | told))


def peak_bytes() -> int:
    """The most memory that this process has had.

    Linux tells it of the program alone; `getrusage` there counts what ran before it as well.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
