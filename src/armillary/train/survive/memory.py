"""A rank that runs out of memory: what the memory is for, and which layout needs less."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from armillary.axes import discover
from armillary.spec import Plan, SpecError
from armillary.train.folder.environment import measured_memory_bytes
from armillary.train.outfit import Outfit
from armillary.train.request import TrainRequest
from armillary.train.start.admission import admit_before_ranks

MOST = 4
WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there was no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def advice(error: BaseException, request: TrainRequest, outfit: Outfit) -> SpecError:
    """The refusal that names the largest term of a rank's memory and what makes it smaller."""
    terms = held_bytes(outfit)
    largest = max(terms, key=lambda name: terms[name])
    shown = ", ".join(f"{name} {_words(size)}" for name, size in terms.items())
    planned = _planned(request.plan)
    return SpecError(
        "memory",
        f"{_said(error)}; measured on rank {outfit.world.rank}: {shown}{planned}",
        f"a rank's memory holds all that its layout gives it; the largest term is {largest}",
        "; or ".join(f"--layout with {words}" for words in _less(largest, request))
        or "a smaller model: its axes admit no layout that shares this out",
    )


def _said(error: BaseException) -> str:
    """The first line of an error, less where in torch's source it was raised."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[enforce fail[^]]*\] (err == 0\. )?", "", first)[:160].rstrip(" .")


def held_bytes(outfit: Outfit) -> dict[str, int]:
    """Bytes that this rank holds, by term; activations are what the peak was above the rest."""
    model, optimizer = outfit.state.model, outfit.state.optimizer
    parameters = [*model.parameters()]
    known = {
        "parameters": _bytes(parameters) + _bytes(model.buffers()),
        "gradients": _bytes(p.grad if p.grad is not None else p for p in parameters),
        "optimizer state": _bytes(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ),
    }
    peak = measured_memory_bytes(outfit.world.device)
    return known | {"activations and the rest": max(peak - sum(known.values()), 0)}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    local = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local)


def _words(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _planned(plan: Plan | None) -> str:
    if plan is None or not plan.memory:
        return ""
    found = sorted(plan.memory, key=lambda term: -term.predicted_bytes)[:3]
    return "; planned: " + ", ".join(f"{t.name} {_words(t.predicted_bytes)}" for t in found)


def _less(term: str, request: TrainRequest) -> list[str]:
    """Changes of a layout that make a term smaller, those that cost least first; an axis is named
    where all axes admit the model so.
    """
    layout, axes = request.layout, discover().values()
    found = []
    if term.startswith("activations"):
        size = layout.micro_batch_size
        found += [f"micro_batch_size={max(size // 2, 1)}"] if size != 1 else []
        found += ["recompute=full"] if layout.recompute != "full" else []
        found += ["precision=bfloat16"] if layout.precision == "float32" else []
        names = sorted(a.name for a in axes if not a.splits_batch and not a.splits_module)
    else:
        sharing = [axis for axis in axes if axis.shares_parameters]
        sharing.sort(key=lambda axis: (not axis.splits_batch, axis.name))
        names = [axis.name for axis in sharing]
    return [*found, *_admitted(names, request)][:MOST]


def _admitted(names: Iterable[str], request: TrainRequest) -> Iterator[str]:
    """Those of the axes that can have twice their degree, as words of a layout."""
    for name in names:
        degree = 2 * request.layout.degree(name)
        degrees = {**request.layout.degrees, name: degree}
        changed = replace(request, layout=replace(request.layout, degrees=degrees))
        try:
            admit_before_ranks(changed, as_named=False)
        except SpecError:
            continue
        yield f"{name}={degree}"
