"""What a command prints and costs."""

import os
import subprocess
import tempfile


def spent(command: list[str], cwd: str | None = None) -> tuple[str, float, float]:
    """What a command prints, its user and system seconds, and its most memory in bytes."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        raise RuntimeError(f"{command[0]} ended with {status}: {text[-300:]}")
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0
