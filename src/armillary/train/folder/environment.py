"""What a run runs on: versions, the state of the source, and the hardware."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from armillary.spec.secrets import withheld

KEPT = (
    "CCL_", "CUDA_VISIBLE_", "CXI_", "FI_", "GLOO_", "GPU_", "HIP_VISIBLE_", "HSA_", "I_MPI_",
    "KMP_", "MIOPEN_", "MKL_", "MPICH_", "NCCL_", "NUMEXPR_", "OFI_", "OMP_", "ONEAPI_DEVICE_",
    "PYTORCH_", "RCCL_", "ROCR_VISIBLE_", "SYCL_", "TORCHINDUCTOR_", "TORCH_", "UCX_", "UR_",
    "XLA_FLAGS", "ZE_",
)  # fmt: skip
"""Variables that a run's record keeps begin so; no other is looked at."""


def git_state(folder: Path) -> dict[str, Any]:
    """Commit, branch and whether files are changed, of the repository at `folder`; {} if none."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "is_changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def hardware(device: torch.device, num_ranks: int) -> dict[str, Any]:
    """The machine as rank 0 sees it: host, processor, cores, memory and device."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "device": device.type,
        "device_name": name if device.type != "cpu" else _processor_name(),
        "num_ranks": num_ranks,
        "num_cores": os.cpu_count() or 1,
        "threads_per_rank": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "invocation": withheld(
            " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv))
        ),
        "variables": variables(os.environ),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how ranks compute and send, none of which holds a secret."""
    found = {name: text for name, text in environment.items() if name.startswith(KEPT)}
    return {name: withheld(text) for name, text in sorted(found.items()) if "KEY" not in name}


def measured_memory_bytes(device: torch.device) -> int:
    """The most memory that this rank has held: of the device, or of the process on a CPU."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def _processor_name() -> str:
    """The processor's name as Linux tells it, or the machine's architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
