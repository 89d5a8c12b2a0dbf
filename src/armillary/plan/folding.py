"""A graph with its equal blocks folded into one, so that a layout is priced by a few messages."""

from dataclasses import replace

from armillary.spec import ModelGraph


def fold(graph: ModelGraph) -> ModelGraph:
    """`graph` with one block for all that are equal, as its segments tell; see `repeats`.

    The axes tell of its messages as of the whole: `ModelGraph.times` says for how many each stands.
    """
    left = tuple(f"{path}." for s in graph.segments for path in s.paths if path != s.path)
    if not left:
        return graph

    def kept(path: str) -> bool:
        return not f"{path}.".startswith(left)

    positions = replace(
        graph.positions, stencils=tuple(s for s in graph.positions.stencils if kept(s.path))
    )
    return replace(
        graph,
        blocks=tuple(b for b in graph.blocks if kept(b.path)),
        splits=tuple(s for s in graph.splits if kept(s.path)),
        attentions=tuple(a for a in graph.attentions if kept(a.path)),
        routed=tuple(r for r in graph.routed if kept(r.path)),
        batch_norms={path: n for path, n in graph.batch_norms.items() if kept(path)},
        recurrent=tuple(path for path in graph.recurrent if kept(path)),
        convolutions=tuple(path for path in graph.convolutions if kept(path)),
        unsplit={path: why for path, why in graph.unsplit.items() if kept(path)},
        sums=tuple(s for s in graph.sums if kept(s.path)),
        positions=positions,
        repeats={s.path: s.repeats for s in graph.segments if s.path and s.repeats > 1},
    )
