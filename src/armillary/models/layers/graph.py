"""Parts put together: a chain of equal blocks, what is ahead of it and behind it, as a graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from armillary.models.layers.part import Part
from armillary.spec import (
    Attention,
    Block,
    Glue,
    ModelGraph,
    Positions,
    Routed,
    Segment,
    Split,
    Sum,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Blocks that follow one another: `kinds` are the parts, `order` says which each block is.

    `ahead` and `behind` run before and after them. `regions` says for parameters of these in which
    regions they are used, where it is not 0 and the last; `tied` lists names of one parameter. A
    block hands on `handed` tensors of `handed_bytes` a sample together, the first block takes
    `taken_bytes`.
    """

    ahead: Part
    behind: Part
    kinds: Mapping[str, Part]
    order: Sequence[str]
    blocks: str = "blocks"
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    output_bytes: int = 0
    handed: int = 1
    handed_bytes: int = 0

    def graph(self, name: str, **others: Any) -> ModelGraph:
        """The model of this chain, by what is known of every part."""
        parts = [self.kinds[kind] for kind in self.order]
        size = self.ahead.element_bytes
        num_parameters = sum(p.num_parameters for p in (self.ahead, *parts, self.behind))
        paths = [f"{self.blocks}.{i}" for i in range(len(parts))]
        attentions = [a for i, p in enumerate(parts) for a in _attentions(p, paths[i])]
        return ModelGraph(
            name=name,
            num_parameters=num_parameters,
            parameter_bytes=num_parameters * size,
            num_tensors=sum(len(p.parameters) for p in (self.ahead, *parts, self.behind)),
            blocks=tuple(self._blocks(parts, paths)) if len(parts) > 1 else (),
            glue=tuple(self._glue()) if len(parts) > 1 else (),
            splits=tuple(self._splits(parts, paths)),
            unsplit={
                f"{path}.{name}": why
                for path, part in zip(paths, parts, strict=True)
                for name, why in part.unsplit.items()
            },
            attentions=tuple(attentions),
            routed=tuple(r for i, p in enumerate(parts) for r in _routed(p, paths[i])),
            sums=tuple(s for i, p in enumerate(parts) for s in _sums(p, paths[i])),
            positions=self._positions() if attentions else Positions(),
            tied=self.tied,
            segments=tuple(self._segments(paths)),
            element_bytes=size,
            **self._line(parts, paths) | others,
        )

    def _line(self, parts: list[Part], paths: list[str]) -> dict[str, Any]:
        """What a pipeline reads: nothing where there is one block."""
        if len(parts) < 2:
            return {"uncut": "it has no two blocks that follow one another"}
        flops = {id(part): _flops(part) for part in (self.ahead, *parts, self.behind)}
        costs = [flops[id(part)] for part in (self.ahead, *parts)]
        costs[-1] += flops[id(self.behind)]
        crossing = tuple(range(self.handed))
        handed = self.handed_bytes or self.output_bytes
        crossings = ((), *[crossing] * (len(parts) - 1))
        sizes = (self.output_bytes, *[handed] * (len(parts) - 1))
        return {
            "chain": tuple(paths),
            "crossings": crossings,
            "crossing_bytes": sizes,
            "wide_crossings": crossings,  # residual streams
            "wide_bytes": (0, *sizes[1:]),
            "chain_flops": tuple(costs),
        }

    def _blocks(self, parts: list[Part], paths: list[str]) -> Iterator[Block]:
        for path, part in zip(paths, parts, strict=True):
            yield Block(
                path=path,
                num_parameters=part.num_parameters,
                parameter_bytes=part.num_parameters * part.element_bytes,
                activation_bytes=self.output_bytes,
            )

    def _glue(self) -> Iterator[Glue]:
        for part, region in ((self.ahead, 0), (self.behind, len(self.order))):
            for path, entries in part.parameters.items():
                regions = self.regions.get(path, (region,))
                yield Glue(path=path, parameter_bytes=entries * part.element_bytes, regions=regions)

    def _splits(self, parts: list[Part], paths: list[str]) -> Iterator[Split]:
        """Those of every block, by the first block's as a pattern."""
        patterns = {
            id(part): [
                ({name: getattr(s, name) for name in _SPLIT_FIELDS}, s.path, s.region)
                for s in part.splits
            ]
            for part in self.kinds.values()
        }
        for path, part in zip(paths, parts, strict=True):
            for fields, own, region in patterns[id(part)]:
                yield Split(path=f"{path}.{own}", region=f"{path}.{region}", **fields)
        yield from (*self.behind.splits, *self.ahead.splits)

    def _positions(self) -> Positions:
        return Positions(argument=0, dim=1, length=self.ahead.tokens)

    def _segments(self, paths: list[str]) -> Iterator[Segment]:
        yield Segment(ops=tuple(self.ahead.ops))
        for kind, part in self.kinds.items():
            own = [path for path, other in zip(paths, self.order, strict=True) if other == kind]
            ops = tuple(replace(op, path=f"{own[0]}.{op.path}".rstrip(".")) for op in part.ops)
            yield Segment(
                path=own[0],
                repeats=len(own),
                ops=ops,
                paths=tuple(own),
                after=list(self.order).index(kind),
            )
        yield Segment(ops=tuple(self.behind.ops), after=len(paths))


_SPLIT_FIELDS = (
    *("kind", "dim", "num_units", "unit", "parameter_bytes", "activation_bytes"),
    *("exchanged_bytes", "num_calls", "num_pieces", "num_tokens", "ends_block"),
)


def _flops(part: Part) -> int:
    return sum(op.flops * op.count for op in part.ops)


def _attentions(part: Part, path: str) -> Iterator[Attention]:
    for a in part.attentions:
        yield replace(a, path=f"{path}.{a.path}")


def _routed(part: Part, path: str) -> Iterator[Routed]:
    for r in part.routed:
        yield replace(r, path=f"{path}.{r.path}")


def _sums(part: Part, path: str) -> Iterator[Sum]:
    for s in part.sums:
        yield replace(s, path=f"{path}.{s.path}")
