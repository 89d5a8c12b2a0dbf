"""A scientist's own parallel code against their serial code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor

from armillary.spec import Layout, SpecError
from armillary.verify.compare import TOLERANCE, Difference, compare
from armillary.verify.program import Trace
from armillary.verify.ranks import Ranks, RanksFailed

TIMEOUT_S = 600.0
Returned = nn.Module | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the parallel program is equal, and every difference, the worst first."""

    differences: tuple[Difference, ...]
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether no tensor differs by more than the tolerance."""
        return all(d.difference <= self.tolerance for d in self.differences)

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        if self.equal:
            worst = max((d.difference for d in self.differences), default=0.0)
            return f"equal: {len(self.differences)} tensors, worst {worst:.1e}"
        wrong = [d for d in self.differences if not d.difference <= self.tolerance]
        lines = [
            f"  {d.kind} {d.name}: {d.difference:.2e} on rank {d.rank}; {d.pattern}"
            for d in wrong[:10]
        ]
        return "\n".join([f"wrong: {len(wrong)} of {len(self.differences)} tensors", *lines])


def verify(
    serial: Callable[[], Returned],
    parallel: Callable[[], Returned],
    *,
    ranks: int = 4,
    tolerance: float = TOLERANCE,
    timeout_s: float = TIMEOUT_S,
) -> Verdict:
    """The verdict on `parallel`, run on `ranks` processes of this machine, against `serial`.

    Each function takes nothing, seeds and builds its own model, runs forward and backward (with as
    many optimiser steps as it likes), and returns the module, of which every parameter, gradient
    and buffer is compared, or a mapping of names to tensors. `parallel` finds torch.distributed
    initialised with gloo, one thread a rank. Use float64: the tolerance is meant for it. A function
    that has not ended after `timeout_s` has failed.

    Raises: `SpecError` if the functions cannot be sent to another process, fail, or return
    something else.

    Example (in a file that is run as a script, under `if __name__ == "__main__":`):
        print(armillary.verify(train_serially, train_on_ranks, ranks=4))
    """
    with Ranks(timeout_s) as pool:
        try:
            expected = pool.run(1, _trace, serial)[0]
            found = pool.run(ranks, _trace, parallel)
        except (AttributeError, TypeError, PicklingError) as error:
            raise SpecError(
                "verify",
                f"a function cannot be sent to another process: {error}",
                "the functions stand at the top level of a module",
                "define them with `def` outside of other functions",
            ) from None
        except RanksFailed as failed:
            raise SpecError(
                "verify",
                f"a function failed on {_first(failed.tracebacks)}",
                "both functions run to their end on every rank",
                "correct what the traceback says",
            ) from None
    layout = Layout(degrees={"ranks": ranks})
    return Verdict(tuple(compare(found, expected, layout)), tolerance)


def _first(tracebacks: Mapping[int, str]) -> str:
    """The rank that failed of itself, not because another was gone, and its traceback."""
    own = {r: t for r, t in tracebacks.items() if not any(word in t for word in GONE)}
    rank, text = next(iter((own or tracebacks).items()))
    return f"rank {rank}:\n{text.strip()}"


GONE = ("closed by peer", "reset by peer", "the process is gone", "no answer in")


def _trace(function: Callable[[], Returned]) -> Trace:
    import os

    is_parallel = "RANK" in os.environ
    if is_parallel:
        dist.init_process_group("gloo")
    try:
        return _noted(function())
    finally:
        if is_parallel:
            dist.destroy_process_group()


def _noted(returned: Returned) -> Trace:
    trace = Trace()
    if isinstance(returned, nn.Module):
        parameters = dict(returned.named_parameters())
        trace.parameters = {name: _array(p) for name, p in parameters.items()}
        trace.gradients = {n: _array(p.grad) for n, p in parameters.items() if p.grad is not None}
        trace.buffers = {name: _array(b) for name, b in returned.named_buffers()}
        return trace
    if not isinstance(returned, Mapping):
        raise TypeError(f"returned {type(returned).__name__}: return the module or a mapping")
    trace.gradients = {str(name): _array(value) for name, value in returned.items()}
    return trace


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return np.array(torch.as_tensor(value).detach().cpu())
