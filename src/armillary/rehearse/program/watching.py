"""A step watched operator by operator: what it takes, computes and sends goes into a ledger."""

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from armillary.axes.door import parts
from armillary.models.experts import BalanceBias
from armillary.rehearse.program.ledger import Ledger, Message
from armillary.rehearse.program.messages import Groups, sent_by
from armillary.rehearse.program.world import swapped
from armillary.spec import SpecError
from armillary.step.world import World

OURS = Path(__file__).parents[2]
STEP = tuple(str(OURS / room) + "/" for room in ("step", "axes"))
NOT_THE_MODEL = (str(Path(torch.__file__).parent) + "/", str(OURS / "rehearse") + "/")
WAIT = torch.ops._c10d_functional.wait_tensor.default
SCALER = "/torch/amp/grad_scaler.py"
OPTIMISERS = str(Path(torch.__file__).parent / "optim") + "/"
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
COUNTING = (World.sum.__code__, inspect.unwrap(BalanceBias.after_step).__code__)
"""What a step counts beside the gradients, and no axis tells: sums of a loss, loads of a router."""
LOOKS = "aten._local_scalar_dense"
LOOKING = "looks at values"
WITHOUT_VALUES = ("meta tensor", "meta device", "register_meta", "supported for tensor subclasses")
"""What torch 2.13 says where a tensor has no values to look at."""


class Watching(TorchDispatchMode):
    """The mode in which a step runs; it goes on top of torch's fake tensors."""

    def __init__(
        self, ledger: Ledger, groups: Groups, module: nn.Module, fake: FakeTensorMode
    ) -> None:
        super().__init__()
        self.ledger, self.groups, self.fake = ledger, groups, fake
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.block = ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # until it has become what it computes and sends
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            return answer(args[0])
        if function is WAIT:
            return args[0]  # torch's fake tensors would make another
        result = function(*args, **kwargs)
        if "c10d" in function.namespace:
            self._send(function, args, kwargs, result)
        for leaf in tree_leaves(result):
            if getattr(leaf, "fake_mode", None) is self.fake:
                self.ledger.take(leaf)
        if flops := _flops(function, args, kwargs, result):
            self.ledger.note("flops", flops)
        return result

    def _send(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        sent = sent_by(function, args, kwargs, self.groups)
        for leaf in tree_leaves((args, result)):
            if isinstance(leaf, torch.Tensor):
                self.ledger.held[self.ledger.take(leaf)].sent = True
        if sent is None:
            return
        if any(frame.f_code in COUNTING for frame in _frames()):
            return
        module = self.ledger.causes[-1]
        if module is None:  # frames are not listed: a list in one of them would hold them all
            module = next(filter(None, map(self._path_of, _frames())), self.block)
        self.ledger.note("send", Message(*sent, module=module))

    def _path_of(self, frame: FrameType) -> str:
        found = frame.f_locals.get("self")
        return self.paths.get(id(found), "") if isinstance(found, nn.Module) else ""


def _frames() -> Iterator[FrameType]:
    """The frames that led here, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def answer(tensor: torch.Tensor) -> Any:
    """A number in place of what a tensor without memory would hold, where the step itself asks.

    Losses, norms and counts that are asked for are a half, which no one clips, and flags are not
    set.

    Raises: `SpecError` if the model asks: its program then depends on values.
    """
    is_scaling = False
    for frame in _frames():
        file = frame.f_code.co_filename
        if file.endswith(SCALER):
            is_scaling = True
        elif file.startswith(OPTIMISERS):
            break
        elif not file.startswith(NOT_THE_MODEL):
            if file.startswith(STEP):
                break
            raise looks_at_values(LOOKS, file, frame.f_lineno)
    return 0.5 if tensor.is_floating_point() and not is_scaling else 0


def looks_at_values(operator: str, file: str, line: int, how: str = LOOKING) -> SpecError:
    """The refusal of a model whose program depends on values."""
    import linecache

    code = linecache.getline(file, line).strip()
    return SpecError(
        f"{file}:{line}",
        f"{operator} {how}{f', in `{code}`' if code else ''}",
        "a rehearsal runs on tensors that have shapes and no values (rehearse/program/watching.py)",
        "decide by shapes, or compute both sides and choose with torch.where",
    )


def refusal_of(error: BaseException) -> SpecError | None:
    """What to say of an error that a tensor without values raised; None if it is another."""
    words = str(error)
    if not _needs_values(error):
        return None
    places = []
    traceback = error.__traceback__
    while traceback is not None:
        places.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    of_model = [place for place in places if _is_of_a_model(place[0])]
    named = re.search(r"aten[:.]+\w+|torch\.\w+\(\)|repeat_interleave|numpy", words)
    operator = str(getattr(error, "func", "") or (named[0] if named else LOOKS))
    how = "has no form without values" if "no fake impl" in words else LOOKING
    return looks_at_values(operator, *(of_model or places)[-1], how)


def _needs_values(error: BaseException) -> bool:
    """Whether torch raised `error` because a tensor has no values; DTensor raises one of its own
    because of it (torch 2.13).
    """
    from torch._subclasses import fake_tensor

    data_dependent = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
    )
    if isinstance(error, data_dependent) or isinstance(error.__cause__, data_dependent):
        return True
    words = str(error).lower()
    return any(said in words for said in WITHOUT_VALUES)


def _is_of_a_model(file: str) -> bool:
    """Whether a file is a recipe's or a library's, rather than torch's or of what reads models."""
    is_ours = file.startswith(f"{OURS}/") and not file.startswith(f"{OURS / 'recipes'}/")
    return not is_ours and not file.startswith(NOT_THE_MODEL)


@contextlib.contextmanager
def noting_storage(ledger: Ledger, module: nn.Module) -> Iterator[None]:
    """A context in which FSDP's units in `module` are noted as causes, and storage that is resized
    is seen.

    The tensors on which DTensor tries shapes are kept apart: no step holds them.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.distributed.tensor import _sharding_prop

    resize = torch.UntypedStorage.resize_
    aside = FakeTensorMode()
    paths = _units(module)

    def resized(storage: torch.UntypedStorage, size: int) -> Any:
        ledger.resize(storage, size)
        return resize(storage, size)

    def causing(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def caused(unit: Any, *args: Any, **kwargs: Any) -> Any:
            with ledger.caused_by(paths.get(id(unit), "")):
                return method(unit, *args, **kwargs)

        return caused

    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(torch.UntypedStorage, "resize_", resized))
        stack.enter_context(swapped(_sharding_prop, "detect_fake_mode", lambda: aside))
        for name in ("unshard", "wait_for_unshard", "reshard", "post_backward"):
            method = causing(getattr(FSDPParamGroup, name))
            stack.enter_context(swapped(FSDPParamGroup, name, method))
        yield


def _units(module: nn.Module) -> dict[int, str]:
    """The paths of FSDP's units, by their ids; torch names them only as a pass begins."""
    return {
        id(group): path
        for part in parts(module)
        for path, inner in part.named_modules()
        if isinstance(inner, FSDPModule)
        for group in inner._get_fsdp_state()._fsdp_param_groups
    }


def _flops(function: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Floating-point operations of a product, an attention or a convolution, as torch counts."""
    if function is FLASH:
        return int(flop_counter.sdpa_flop_count(*(t.shape for t in args[:3])))
    if function is FLASH_BACKWARD:
        return int(flop_counter.sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    count = flop_counter.flop_registry.get(function.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))
