"""What this machine offers to a run: devices, backends, launcher, packages, and what is missing."""

import importlib.util
import os
import shutil
from typing import Any

import torch
import torch.distributed as dist

from armillary.spec import SpecError
from armillary.step.versions import versions
from armillary.train.folder.environment import hardware
from armillary.train.launchers import find_here, job_hosts

PROGRAMS = ("torchrun", "srun", "sbatch", "mpiexec", "mpirun", "qsub", "palsd")
EXTRAS = {
    "tensorboardX": ("TensorBoard events of every run", "tensorboardX"),
    "plotly": ("figures in report.html", "plotly"),
    "pyarrow": ("predictions as Parquet or CSV", "'armillary[fusion]'"),
    "sklearn": ("the baselines of the fusion recipe", "'armillary[fusion]'"),
    "zarr": ("reading shots from the FAIR-MAST store", "'armillary[fusion]'"),
    "obstore": ("reading shots from the FAIR-MAST store", "'armillary[fusion]'"),
    "mlflow": ("tracking with MLflow", "mlflow"),
    "wandb": ("tracking with Weights & Biases", "wandb"),
}
COMPILERS = ("g++", "clang++", "c++")


def examine() -> dict[str, Any]:
    """What was found, by topic; `missing` lists what is absent, what for, and how to get it."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return {
        "versions": versions(),
        "hardware": hardware(torch.device(device.type, 0) if device.type != "cpu" else device, 1),
        "torch_build": {
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "threads": torch.get_num_threads(),
            "default_backend": dist.get_default_backend_for_device(device.type),
        },
        "devices": _devices(device),
        "backends": {name: _has_backend(name) for name in ("gloo", "nccl", "xccl", "mpi")},
        "launcher": _launcher(),
        "launchers_installed": [name for name in PROGRAMS if shutil.which(name)],
        "missing": _missing(),
    }


def _devices(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return []
    count = torch.accelerator.device_count()
    if device.type == "cuda":
        return [torch.cuda.get_device_name(i) for i in range(count)]
    return [f"{device.type}:{i}" for i in range(count)]


def _has_backend(name: str) -> bool:
    return bool(
        {
            "gloo": dist.is_gloo_available,
            "nccl": dist.is_nccl_available,
            "xccl": dist.is_xccl_available,
            "mpi": dist.is_mpi_available,
        }[name]()
    )


def _launcher() -> dict[str, Any]:
    """Who started this process, and each field of its place with the variable that told it."""
    try:
        place = find_here()
    except SpecError as error:
        return {"found": "a contradiction", **error.to_dict()}
    if place is not None:
        return {"found": place.launcher, **place.to_dict()}
    names, source = job_hosts(os.environ)
    why = "no launcher's variables name a rank; train starts its own on this node"
    return {"found": "none", "why": why} | ({f"nodes ({source})": names} if names else {})


def _missing() -> list[dict[str, str]]:
    missing = [
        {"name": name, "for": purpose, "get": f"pip install {package}"}
        for name, (purpose, package) in EXTRAS.items()
        if importlib.util.find_spec(name) is None
    ]
    if not any(shutil.which(name) for name in COMPILERS):
        missing.append(
            {
                "name": "a C++ compiler",
                "for": "layouts with compile=true",
                "get": "install g++ from the system's packages",
            }
        )
    return missing
