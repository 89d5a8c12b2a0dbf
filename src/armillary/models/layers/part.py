"""What a part of a model holds and runs, gathered layer by layer.

Sizes are those that torch's own kernels have: an op reads what it takes once, writes what it gives
once, and keeps for its backward what autograd keeps. `models.trace` counts the same by watching.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from armillary.spec import Attention, Op, Routed, Split, Sum

STATISTIC_BYTES = 4
"""Mean, deviation and log-sum-exp are float32 in torch's kernels, whatever the precision."""
INDEX_BYTES = 8
"""Indices are int64."""


@dataclass(slots=True)
class Part:
    """One block, or what runs outside the blocks: parameters by path, ops, cuts; paths are its own.

    `tokens` are those of a sample and `element_bytes` the size of an entry of an activation.
    """

    tokens: int
    element_bytes: int = 4
    parameters: dict[str, int] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    unsplit: dict[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """The number of entries of its parameters."""
        return sum(self.parameters.values())

    def hold(self, path: str, *shape: int) -> int:
        """Add a parameter; its bytes."""
        self.parameters[path] = prod(shape)
        return prod(shape) * self.element_bytes

    def size(self, features: int) -> int:
        """Bytes of so many features of every token of a sample."""
        return self.tokens * features * self.element_bytes

    # ------------------------------------------------------------------------------------- ops
    def linear(
        self,
        path: str,
        inner: int,
        columns: int,
        *,
        bias: bool = False,
        keeps: bool = True,
        cut: str = "",
        holds: bool = True,
        forks: bool = False,
    ) -> None:
        """A linear map of every token; it `keeps` its input where no op before has done so.

        Where it `holds` no weight of its own it uses one that the model holds elsewhere. Where it
        `forks`, another op takes the same input, and the gradients of both are added.
        """
        weight = inner * columns * self.element_bytes
        if holds:
            self.hold(f"{path}.weight", columns, inner)
        if bias:
            weight += self.hold(f"{path}.bias", columns)
        taken, given = self.size(inner), self.size(columns)
        flops = 2 * self.tokens * inner * columns
        self.ops.append(
            Op(
                path=path,
                kind="matmul",
                name="addmm" if bias else "mm",
                rows=self.tokens,
                columns=columns,
                inner=inner,
                flops=flops,
                read_bytes=taken,
                written_bytes=given,
                parameter_bytes=weight,
                shares_parameters=not holds,
                saved_bytes=taken if keeps else 0,
                workspace_bytes=given + taken + taken * forks,
                backward_flops=2 * flops,
                backward_read_bytes=given * (3 if bias else 2) + taken + 2 * taken * forks,
                backward_written_bytes=taken + taken * forks,
                num_backward_kernels=2 + bias + forks,
                cut=cut,
                tokens=True,
            )
        )

    def stream(
        self,
        path: str,
        name: str,
        *,
        read: int,
        written: int,
        back: tuple[int, int] = (0, 0),
        saved: int = 0,
        unscaled: int = 0,
        kernels: tuple[int, int] = (1, 1),
        **others: Any,
    ) -> None:
        """An op bound by memory; `back` is what its backward reads and writes.

        `saved` counts what autograd keeps, `unscaled` what it keeps besides in a fixed precision.
        """
        sizes: dict[str, Any] = {
            "workspace_bytes": written + back[1],
            "tokens": True,
            "kind": "stream",
        } | others
        self.ops.append(
            Op(
                path=path,
                name=name,
                read_bytes=read,
                written_bytes=written,
                saved_bytes=saved + unscaled,
                unscaled_saved_bytes=unscaled,
                backward_read_bytes=back[0],
                backward_written_bytes=back[1],
                num_kernels=kernels[0],
                num_backward_kernels=kernels[1],
                **sizes,
            )
        )

    def norm(self, path: str, features: int, kind: str, *, bias: bool = True) -> None:
        """A layer norm or RMS norm of every token, which keeps what it takes."""
        is_layer = kind == "layer"
        weight = self.hold(f"{path}.weight", features)
        if is_layer and bias:
            weight += self.hold(f"{path}.bias", features)
        size = self.size(features)
        statistics = self.tokens * STATISTIC_BYTES * (2 if is_layer else 1)
        self.stream(
            path,
            "native_layer_norm" if is_layer else "_fused_rms_norm",
            read=size,
            written=size + statistics,
            back=(2 * size + statistics, size),
            saved=size,
            unscaled=statistics,
            parameter_bytes=weight,
            kernels=(1, 2),
        )

    def add(self, path: str, features: int) -> None:
        """Two tensors added; behind a fork, the gradients of both ways are added too."""
        size = self.size(features)
        self.stream(path, "add", read=2 * size, written=size, back=(2 * size, size))

    def dropout(self, path: str, size: int, share: float, cut: str = "") -> None:
        """Entries of `size` bytes dropped by chance, of which a mask is kept; nothing at 0."""
        if share:
            mask = size // self.element_bytes
            self.stream(
                path,
                "native_dropout",
                read=size,
                written=size + mask,
                back=(size + mask, size),
                unscaled=mask,
                cut=cut,
            )

    def embedding(self, path: str, words: int, features: int) -> None:
        """A row of a table for every token."""
        self.hold(f"{path}.weight", words, features)
        size, indices = self.size(features), self.tokens * INDEX_BYTES
        self.stream(
            path,
            "embedding",
            kind="gather",
            read=size + indices,
            written=size,
            back=(size + indices, 0),
            parameter_bytes=words * features * self.element_bytes,
            cut="words",
        )

    # ------------------------------------------------------------------------------------ cuts
    def split(self, path: str, kind: str, dim: int, units: int, unit: str, **others: Any) -> None:
        """A parameter that may be cut, of the region that `region` names, or its own."""
        others.setdefault("region", path.rpartition(".")[0])
        others.setdefault("parameter_bytes", self.parameters.get(path, 0) * self.element_bytes)
        self.splits.append(
            Split(path=path, kind=kind, dim=dim, num_units=units, unit=unit, **others)
        )

    def pair(
        self,
        begins: list[str],
        end: str,
        features: int,
        units: int,
        unit: str,
        bias: bool,
        *,
        ends: bool = False,
    ) -> None:
        """Linear maps `begins` that take `features`, cut by what they put out, and the one that
        takes that in and gives `features` again; it `ends` its block if nothing is kept after it.
        """
        size, region = self.size(features), begins[0]
        for place, path in enumerate(begins):
            sent = 0 if place else size
            at = {"region": region, "num_tokens": self.tokens, "activation_bytes": sent}
            self.split(f"{path}.weight", "column", 0, units, unit, num_calls=int(sent > 0), **at)
            if bias:
                self.split(f"{path}.bias", "column", 0, units, unit, region=region)
        at = {"region": region, "num_tokens": self.tokens, "activation_bytes": size}
        self.split(f"{end}.weight", "row", 1, units, unit, num_calls=1, ends_block=ends, **at)
        if bias:
            self.split(f"{end}.bias", "ending", 0, units, unit, region=region)

    def last(self, **changes: Any) -> None:
        """Change fields of the op added last."""
        self.ops[-1] = replace(self.ops[-1], **changes)
