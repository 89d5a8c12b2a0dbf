"""What NCCL itself says that it sends over: it falls back to sockets without a word otherwise."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from armillary.train.doctor.findings import GOOD, NOT_TRIED, WRONG, Check

USING = re.compile(r"Using network ([^\n]+)")
"""NCCL's line at level INFO, subsystem NET; RCCL's is the same. Source: NCCL, src/plugin/net.cc."""


@contextmanager
def note_transport() -> Iterator[Path]:
    """Have NCCL say what it uses in a file, while this lasts; the folder of that file.

    Nothing is changed where somebody has asked NCCL to say something already.
    """
    with tempfile.TemporaryDirectory(prefix="armillary-") as name:
        wanted = {
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,NET",
            "NCCL_DEBUG_FILE": f"{name}/nccl",
        }
        if any(variable in os.environ for variable in wanted):
            yield Path(name)
            return
        os.environ |= wanted
        try:
            yield Path(name)
        finally:
            for variable in wanted:
                os.environ.pop(variable, None)


def transport_check(folder: Path, device: torch.device) -> Check:
    """Did NCCL take the fabric's plug-in, by its own words?"""
    if device.type != "cuda":
        found = f"{device.type}: no NCCL"
        return Check(name="transport", state=NOT_TRIED, found=found)
    path = folder / "nccl"
    return _judged(path.read_text(errors="replace") if path.is_file() else "")


def _judged(said: str) -> Check:
    found = USING.findall(said)
    if not found:
        words = "NCCL said nothing of its network: one node, or NCCL_DEBUG is in use"
        return Check(name="transport", state=NOT_TRIED, found=words)
    network = found[-1].strip()
    if network.lower().startswith("socket"):
        return Check(
            name="transport",
            state=WRONG,
            found="NCCL sends over sockets",
            fix="load the fabric's plug-in (aws-ofi-nccl, rccl-net-plugin) and set NCCL_NET to its "
            "name, so that NCCL refuses to start without it",
        )
    return Check(name="transport", state=GOOD, found=f"NCCL sends over {network}")
