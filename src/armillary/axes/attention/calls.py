"""Attention on DTensors: every rank attends with the heads, or from the positions, it holds."""

# Shapes of a call: [..., H, T, D] of H heads, T positions, D of a head
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from armillary.axes.attention.heads import heads_attention
from armillary.axes.attention.ring import ring_attention
from armillary.axes.stand_in import has_parts, original, standing_in
from armillary.axes.tokens import ON_TOKENS
from armillary.spec import SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement
    from torch.overrides import TorchFunctionMode

ATTENDING = "_armillary_attending"
NAME = "scaled_dot_product_attention"


@dataclass(slots=True, eq=False)
class Attending:
    """How a part attends where the positions are cut: by "ring" or by "heads", balanced or not."""

    form: str = "ring"
    is_balanced: bool = True

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The context in which attention over DTensors is computed on their local parts."""

        def attend_here(function: Any, *args: Any, **kwargs: Any) -> Any:
            return _attend(self, *args, **kwargs)

        with _mode(self, original(NAME)), standing_in({NAME: attend_here}):
            yield


def attend_in_parts(part: "nn.Module") -> Attending:
    """Have `scaled_dot_product_attention` in `part` take DTensors, cut by heads or positions.

    torch has no rule of sharding for the CPU's attention, so its calls are taken before dispatch.
    The result says how positions are attended to, and may be changed.
    """
    from armillary.axes.compose import compute_in

    attending: Attending = part.__dict__.setdefault(ATTENDING, Attending())
    compute_in(part, attending)
    return attending


def _mode(attending: Attending, attend: Any) -> "TorchFunctionMode":
    """A mode for callers that hold `attend` itself, and for operators that DTensor has not."""
    from torch.overrides import TorchFunctionMode

    class AttentionInParts(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if function is attend and has_parts(args, kwargs):
                return _attend(attending, *args, **kwargs)
            on_tokens = ON_TOKENS.get(getattr(function, "__name__", ""))
            if on_tokens is not None:
                return on_tokens(function, *args, **kwargs)
            try:
                return function(*args, **kwargs)
            except NotImplementedError as error:
                raise _unsupported(function, error) from error

    return AttentionInParts()


def _unsupported(function: Any, error: NotImplementedError) -> Exception:
    """An operator without a rule of sharding, as an error that names it."""
    if "sharding strategy" not in str(error):
        return error
    return SpecError(
        "layout",
        f"the model calls {getattr(function, '__name__', function)}: {str(error).splitlines()[0]}",
        "every operator between the cuts of a tensor needs a rule of torch's DTensor "
        "(axes/attention/calls.py)",
        "write it with other operators, or leave out the axes that cut tensors",
    )


def _attend(
    attending: Attending,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> "Tensor":
    """Attention of DTensors; plain tensors among them are whole on every rank."""
    mesh = next(t.device_mesh for t in (query, key, value) if hasattr(t, "device_mesh"))
    query, key, value, attn_mask = (_as_parts(t, mesh) for t in (query, key, value, attn_mask))
    call = _Call(attending, query, key, value, mesh)
    q, k, v = call.locals()
    others = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    with _own_draws(call, dropout_p):
        if call.rows_dim is None:
            out = _attend_to_all(call, q, k, v, call.local_mask(attn_mask), others)
        elif not call.has_cut_keys:
            mask = call.local_mask(attn_mask)
            if is_causal:
                mask, others = call.causal_rows(mask), others | {"is_causal": False}
            out = _attend_to_all(call, q, k, v, mask, others)
        else:
            out = _attend_in_group(call, q, k, v, attn_mask, others)
    return call.joined(out)


def _as_parts(tensor: Any, mesh: "DeviceMesh") -> Any:
    """`tensor` as a DTensor, of the type that autocast wants for attention."""
    import torch
    from torch.distributed.tensor import DTensor, Replicate

    if tensor is None:
        return None
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    kind = mesh.device_type
    is_cast = torch.is_autocast_enabled(kind) and tensor.dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
    )
    return tensor.to(torch.get_autocast_dtype(kind)) if is_cast else tensor


def _attend_to_all(call: "_Call", q: Any, k: Any, v: Any, mask: Any, others: Any) -> "Tensor":
    """Local queries to local keys, all of which they see."""
    attend = original(NAME)
    enable_gqa = {"enable_gqa": True} if q.shape[-3:-2] != k.shape[-3:-2] else {}
    attended: Tensor = attend(q, k, v, attn_mask=mask, **others, **enable_gqa)
    return attended


def _attend_in_group(call: "_Call", q: Any, k: Any, v: Any, mask: Any, others: Any) -> "Tensor":
    """Local queries to the keys of all ranks that hold parts of the sequence."""
    import torch

    group = call.mesh.get_group(call.rows_dim)
    shape = (*q.shape[:-1], v.shape[-1])
    q, k, v = (_with_heads(t) for t in (q, k, v))
    by_heads = call.attending.form == "heads"
    mask = call.local_mask(mask, cuts_rows=not by_heads)
    if mask is not None and mask.ndim == 3 and len(shape) == 3:
        mask = mask.unsqueeze(1)
    with torch.autocast(q.device.type, enabled=False):
        if by_heads:
            call.check_heads(group)
            return heads_attention(q, k, v, group, mask=mask, **others).reshape(shape)
        return ring_attention(
            q,
            k,
            v,
            group,
            num_rows=call.query.shape[-2],
            num_columns=call.key.shape[-2],
            mask=mask,
            is_causal=others["is_causal"],
            scale=others["scale"],
            dropout=others["dropout_p"],
            is_balanced=call.attending.is_balanced,
        ).reshape(shape)


def _with_heads(tensor: "Tensor") -> "Tensor":
    """`tensor` as [B, H, T, D]: a head is put in, or samples of several dims are made one."""
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.flatten(0, -4)


class _Call:
    """One call of attention: how queries, keys and values lie while it is computed."""

    def __init__(
        self, attending: Attending, query: Any, key: Any, value: Any, mesh: "DeviceMesh"
    ) -> None:
        from torch.distributed.tensor import Replicate

        self.attending, self.mesh = attending, mesh
        self.heads, self.rows = query.ndim - 3, query.ndim - 2
        self.rows_dim: int | None = None
        self.placements = [self._kept(query, dim) for dim in range(mesh.ndim)]
        self.has_cut_keys = self.rows_dim is not None and key.placements[self.rows_dim].is_shard(
            self.rows
        )
        whole = Replicate()
        self.has_cut_heads = any(p.is_shard(self.heads) for p in self.placements)
        shares = self._num_shards(self.heads)
        self.selects = self.has_cut_heads and key.shape[self.heads] % shares != 0
        self.key_placements: list[Placement] = []
        for dim, placement in enumerate(self.placements):
            is_whole = (self.selects and placement.is_shard(self.heads)) or (
                dim == self.rows_dim and not self.has_cut_keys
            )
            self.key_placements.append(whole if is_whole else placement)
        self.query = query.redistribute(mesh, self.placements)
        self.key, self.value = (t.redistribute(mesh, self.key_placements) for t in (key, value))

    def _kept(self, query: "DTensor", dim: int) -> "Placement":
        """How the query stays cut along mesh dim `dim`: by samples, heads or positions, or not."""
        from torch.distributed.tensor import Replicate, Shard

        placement = query.placements[dim]
        if type(placement) is not Shard or placement.dim > self.rows:
            return Replicate()
        if placement.dim == self.rows:
            if self.rows_dim is not None:
                return Replicate()
            self.rows_dim = dim
            return placement
        size = query.shape[placement.dim]
        return placement if size % self.mesh.size(dim) == 0 else Replicate()

    def _num_shards(self, tensor_dim: int) -> int:
        shares = 1
        for dim, placement in enumerate(self.placements):
            shares *= self.mesh.size(dim) if placement.is_shard(tensor_dim) else 1
        return shares

    def locals(self) -> "tuple[Tensor, Tensor, Tensor]":
        """The local parts; gradients of what is whole for parts of the queries are partial."""
        q = self.query.to_local()
        grads = self._gradients(self.key_placements)
        k, v = (t.to_local(grad_placements=grads) for t in (self.key, self.value))
        if self.selects:
            import torch

            num_heads, shared = self.query.shape[self.heads], self.key.shape[self.heads]
            first = self._offset(self.heads)
            heads = torch.arange(first, first + q.shape[self.heads], device=q.device)
            k, v = (t.index_select(self.heads, heads * shared // num_heads) for t in (k, v))
        return q, k, v

    def _gradients(self, placements: Any) -> Any:
        from torch.distributed.tensor import Partial

        return [
            Partial() if ours.is_shard() and not theirs.is_shard() else theirs
            for ours, theirs in zip(self.placements, placements, strict=True)
        ]

    def _offset(self, tensor_dim: int) -> int:
        """The global index of the first local entry of the queries along a dim."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        _, offsets = compute_local_shape_and_global_offset(
            self.query.shape, self.mesh, self.placements
        )
        return int(offsets[tensor_dim])

    def local_mask(self, mask: Any, cuts_rows: bool = True) -> Any:
        """The mask of the local heads and rows, and of all columns."""
        from torch.distributed.tensor import Replicate, Shard

        if mask is None:
            return None
        missing = self.query.ndim - mask.ndim
        wanted: list[Any] = []
        for dim, placement in enumerate(self.placements):
            mask_dim = placement.dim - missing if isinstance(placement, Shard) else -1
            is_cut = mask_dim >= 0 and mask.shape[mask_dim] > 1
            is_cut = is_cut and (cuts_rows or dim != self.rows_dim)
            wanted.append(Shard(mask_dim) if is_cut else Replicate())
        placed = mask.redistribute(self.mesh, wanted)
        return placed.to_local(grad_placements=self._gradients(wanted))

    def causal_rows(self, mask: Any) -> "Tensor":
        """What this rank's rows see of all columns under a causal mask."""
        import torch

        first, length = self._offset(self.rows), self.query.to_local().shape[self.rows]
        rows = torch.arange(first, first + length, device=self.query.device)
        columns = torch.arange(self.key.shape[self.rows], device=self.query.device)
        assert mask is None  # torch refuses both
        return columns <= rows[:, None]

    def check_heads(self, group: Any) -> None:
        local, degree = self.query.to_local(), group.size()
        if local.ndim > 3 and local.shape[self.heads] % degree == 0:
            lengths = self.query.shape[self.rows], self.key.shape[self.rows]
            if not any(length % degree for length in lengths):
                return
        raise SpecError(
            "layout.sequence.attention",
            f"heads, for attention of {tuple(self.query.shape)} on {degree} ranks",
            "by heads, the degree divides heads and positions (axes/attention/calls.py)",
            "use sequence.attention=ring",
        )

    def joined(self, local: "Tensor") -> "Tensor":
        """The local part of the result as part of the whole."""
        import torch
        from torch.distributed.tensor import DTensor

        shape = torch.Size([*self.query.shape[:-1], self.value.shape[-1]])
        stride = torch.empty(shape, device="meta").stride()
        found: Tensor = DTensor.from_local(
            local.contiguous(), self.mesh, self.placements, run_check=False, shape=shape,
            stride=stride,
        )  # fmt: skip
        return found


@contextlib.contextmanager
def _own_draws(call: _Call, dropout: float) -> Iterator[None]:
    """Random numbers of this part of the queries' own; the ranks go on alike afterwards."""
    import torch

    if not dropout:
        yield
        return
    place = 0
    for dim, placement in enumerate(call.placements):
        if placement.is_shard():
            place = place * call.mesh.size(dim) + call.mesh.get_local_rank(dim)
    seed = int(torch.randint(2**62, ()))
    device = call.query.device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type):
        torch.manual_seed(seed + place)
        yield
