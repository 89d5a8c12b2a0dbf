"""What crosses the cuts of a pipeline: the tensors between two stages, by their size and width."""

from armillary.axes.stages.balance import Stages
from armillary.spec import ModelGraph


def alike(graph: ModelGraph) -> dict[tuple[int, int, bool], list[int]]:
    """The blocks before which as much crosses: bytes per sample and number of tensors, of those
    that autocast leaves wide and of the others.
    """
    found: dict[tuple[int, int, bool], list[int]] = {}
    for block, crossing in enumerate(graph.crossings):
        wide = graph.wide_crossings[block] if graph.wide_crossings else ()
        wide_bytes = graph.wide_bytes[block] if wide else 0
        narrow = graph.crossing_bytes[block] - wide_bytes, len(crossing) - len(wide), False
        for size, number, is_wide in (narrow, (wide_bytes, len(wide), True)):
            if number:
                found.setdefault((size, number, is_wide), []).append(block)
    return found


def num_sent(stages: Stages | None, blocks: frozenset[int]) -> int:
    """Before how many of `blocks` there is a cut, between stages of two ranks."""
    if stages is None:
        return 0
    cuts = zip(stages.bounds[1:-1], stages.ranks[:-1], stages.ranks[1:], strict=True)
    return sum(block in blocks and before != after for block, before, after in cuts)
