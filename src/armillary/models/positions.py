"""Where a model's positions lie: the dim of its inputs that may be cut, and who looks beyond."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from armillary.models.watch import Seen
from armillary.spec import Positions, Stencil


def find_positions(module: nn.Module, seen: Seen) -> Positions:
    """The positions of a sequence that attention sees, or else the rows of a grid."""
    argument, dim, length = _find_input(module, seen)
    stencils = tuple(_stencils(module, seen, dim, length)) if length else ()
    return Positions(argument=argument, dim=dim, length=length, stencils=stencils)


def _find_input(module: nn.Module, seen: Seen) -> tuple[int, int, int]:
    """Which tensor that the model takes holds positions, along which dim, and how many.

    -1 where positions arise inside, such as patches of an image; a length of 0 where none is seen.
    """
    lengths = {attention.length for attention in seen.attentions}
    shapes = list(enumerate(seen.arguments.get("", ())))
    for argument, shape in shapes:
        if len(shape) > 1 and shape[1] in lengths:
            return argument, 1, shape[1]
    convolved = [
        seen.inputs[path]
        for path, part in module.named_modules()
        if isinstance(part, _ConvNd) and path in seen.inputs
    ]
    for argument, shape in shapes:
        if not convolved or len(shape) < 3 or len(shape) < len(convolved[0]):
            continue
        is_turned = len(convolved[0]) == 3 and shape[1:] == convolved[0][:0:-1]  # features last
        return argument, 1 if is_turned else 2, shape[1 if is_turned else 2]
    return -1, 1 if lengths else 0, max(lengths, default=0)


def _stencils(module: nn.Module, seen: Seen, dim: int, length: int) -> Iterator[Stencil]:
    for path, part in module.named_modules():
        shape, out = seen.inputs.get(path, ()), seen.outputs.get(path, ())
        if not isinstance(part, KINDS) or len(shape) < 3 or len(out) < 3:
            continue
        if dim == 1 and shape[2] != length:
            continue  # positions lie elsewhere, among the samples
        first = next(part.parameters(), next(module.parameters()))
        position_bytes = prod(shape) // shape[2] * first.element_size() // seen.num_samples
        yield replace(
            _stencil(path, part, shape[2], out[2]),
            position_bytes=position_bytes,
            num_calls=seen.calls[path],
            has_gradient=path not in seen.fed,
        )


def _stencil(path: str, part: Any, length: int, out_length: int) -> Stencil:
    def of(name: str, default: int = 1) -> int:
        value = getattr(part, name, default)
        return value[0] if isinstance(value, tuple) else value

    size, stride, dilation = of("kernel_size"), of("stride") or of("kernel_size"), of("dilation")
    padding = (dilation * (size - 1)) // 2 if part.padding == "same" else of("padding", 0)
    padding = 0 if isinstance(padding, str) else padding
    unfit, after = "", dilation * (size - 1) + 1 - stride - padding
    if isinstance(part, _ConvTransposeNd):
        out_length, padding, after = length, 0, 0
        if (size, of("padding", 0), of("output_padding", 0)) != (stride, 0, 0):
            unfit = "a transposed convolution whose windows overlap"
    elif out_length * stride != length:
        unfit = f"makes {out_length} rows of {length} by stride {stride}"
    elif isinstance(part, _AvgPoolNd) and (padding or after > 0):
        unfit = "an average over windows that overlap"
    return Stencil(
        path=path,
        length=length,
        stride=1 if isinstance(part, _ConvTransposeNd) else stride,
        before=padding,
        after=max(after, 0),
        unfit=unfit,
    )


KINDS = (_ConvNd, _MaxPoolNd, _AvgPoolNd)
