"""A measured run as peers are asked about it: plain words and numbers, nothing unsaid."""

from dataclasses import asdict
from math import prod
from typing import Any

from armillary.plan.published import subject
from armillary.plan.runs import Run
from armillary.spec import SpecError

DEGREES = ("tensor", "pipeline", "sequence", "expert", "stages_per_rank")
WHOLE = ("layers", "hidden", "heads", "seq", "vocab", "global_batch_size", "micro_batch_size")


def question_of(run: Run) -> dict[str, Any]:
    """The run's fields, degrees at least 1, and what a table leaves to be seen from others.

    `data` are the ranks that split the batch, `is_gated` says that feed-forwards have three
    matrices, `lacks` names a size that the row does not give.
    """
    found = asdict(run)
    for name in DEGREES:
        found[name] = max(found[name], 1)
    found["data"] = run.data or run.num_devices // prod(
        found[name] for name in ("tensor", "pipeline", "sequence")
    )
    found["kv_heads"] = run.kv_heads or run.heads
    found["ffn"] = run.ffn or 4 * run.hidden
    found["zero"] = max(run.zero, 0)
    found["recompute"] = run.recompute or "none"
    found["is_gated"] = is_gated(run)
    found["lacks"] = next((name for name in WHOLE if not found[name]), "")
    return found


def is_gated(run: Run) -> bool:
    """Whether the run's feed-forwards have three matrices, as our own reading of it has them."""
    try:
        return subject(run).graph.name.startswith("llama")
    except (SpecError, ValueError):
        return False
