"""Weights in and out of a run: safetensors, or one plain state_dict. No recipe is run for it."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from armillary.axes import DrivesSteps
from armillary.spec import SpecError, reason
from armillary.train.checkpoints.saved import (
    best_step,
    checkpoint_path,
    find_fault,
    load,
    newest_whole,
)
from armillary.train.folder.run_folder import RunFolder

SUFFIXES = (".safetensors", ".pt")

Tensors = dict[str, torch.Tensor]


def export(run: Path, to: Path, *, step: int | None = None) -> dict[str, Any]:
    """Write the model of a checkpoint of `run` to `to`, whole and as evaluated; what was done.

    Without a `step` it is the best checkpoint that is whole, else the newest. Where the run keeps
    an average of its parameters, that is what is written.

    Raises: `SpecError` if there is none, it is damaged, or the format is unknown.
    """
    _check_suffix(to, "--to")
    folder = RunFolder.open(run).checkpoints
    chosen = _chosen(folder, step)
    tensors = read_model(checkpoint_path(folder, chosen))
    to.parent.mkdir(parents=True, exist_ok=True)
    _write(to, tensors, {"run": run.name, "step": str(chosen)})
    sizes = [t.numel() * t.element_size() for t in tensors.values()]
    return {"run": str(run), "step": chosen, "to": str(to), "tensors": len(sizes)} | {
        "bytes": sum(sizes)
    }


def read_model(path: Path) -> Tensors:
    """The tensors of the model in the checkpoint at `path`, by name, whatever layout wrote it."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from armillary.train.checkpoints.shards import read_index

    known = read_index(path)
    keys: Mapping[str, tuple[str, ...]] = known.planner_data
    wanted: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}}
    for flat, entry in known.state_dict_metadata.items():
        parts = keys[flat]
        if parts[0] in wanted and isinstance(entry, TensorStorageMetadata):
            name = ".".join(map(str, parts[1:]))
            wanted[parts[0]][name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load(path, {key: tensors for key, tensors in wanted.items() if tensors}, serial=True)
    return wanted["model"] | wanted["average"]


def read_into(model: nn.Module, path: Path) -> None:
    """Fill the parameters and buffers of `model`, or this rank's parts of them, from the file.

    Raises: `SpecError` if a name is missing or a shape differs; the file may hold no others.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    from armillary.step.build import give

    held: dict[str, Any] = {**get_model_state_dict(model)}
    found = read_weights(path)
    others = set() if isinstance(model, DrivesSteps) else found.keys() - held.keys()
    for name, rule in (
        (next(iter(held.keys() - found.keys()), ""), "the file has every tensor of the model"),
        (next(iter(others), ""), "the file has no other tensors"),
    ):
        if name:
            raise SpecError("--weights", f"{path}: {name}", rule, "export them from the same model")
    for name, tensor in held.items():
        if tensor.shape != found[name].shape:
            raise SpecError(
                "--weights",
                f"{path}: {name} is {[*found[name].shape]}, the model's {[*tensor.shape]}",
                "a tensor has the model's shape",
                "give the recipe the options that the weights were trained with",
            )
        with torch.no_grad():
            give(tensor, found[name])
    set_model_state_dict(model, held)


def check_file(path: Path) -> None:
    """Refuse weights that are not there, before a run is begun with them.

    Raises: `SpecError` that says so.
    """
    _check_suffix(path, "--weights")
    if not path.is_file():
        raise SpecError(
            "--weights", f"no file {path}", "a run begins from a file", "check the path"
        )


def read_weights(path: Path) -> Tensors:
    """The tensors in a .safetensors file or a plain state_dict, by name.

    Raises: `SpecError` if the file is neither, or holds what code would be run for.
    """
    _check_suffix(path, "--weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(torch.is_tensor(t) for t in found.values()):
            raise ValueError("no dict of tensors")
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise SpecError(
            "--weights",
            f"{path}: {reason(error)}",
            "weights are a .safetensors file, or a dict of tensors that torch.save wrote",
            "write the file anew",
        ) from None
    return found


def _write(path: Path, tensors: Tensors, about: dict[str, str]) -> None:
    """Write `tensors` to a file, whole or not at all, with words about them."""
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".pt":
        torch.save(tensors, partial)
    else:
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, about)
    partial.replace(path)


def _check_suffix(path: Path, option: str) -> None:
    if path.suffix not in SUFFIXES:
        raise SpecError(
            option,
            path.name,
            f"weights are one of {', '.join(SUFFIXES)}",
            f"use {path.stem}.safetensors",
        )


def _chosen(folder: Path, step: int | None) -> int:
    """The step of the checkpoint to export: the wanted one, the best, or the newest."""
    wanted = best_step(folder) if step is None else step
    if wanted is not None:
        fault = find_fault(checkpoint_path(folder, wanted))
        if fault is None:
            return wanted
        if step is not None:
            raise SpecError(
                "--step", f"{step}: {fault}", "a checkpoint is whole", "leave --step out"
            )
    return newest_whole(folder)[0]
