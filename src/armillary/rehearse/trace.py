"""A step as a trace that Perfetto and chrome://tracing show."""

import json
from pathlib import Path
from typing import Any

from armillary.core.play import Played
from armillary.rehearse.gantt import CLASSES, class_of, words_of
from armillary.rehearse.step import LANES, Step
from armillary.spec import write_atomically


def write_trace(step: Step, played: Played, path: Path) -> None:
    """Write all events of the played ranks to `path`, in the Trace Event Format (microseconds).

    Source: "Trace Event Format", Google, 2016: complete events ("X") and metadata ("M").
    """
    write_atomically(path, json.dumps({"traceEvents": events(step, played)}) + "\n")


def events(step: Step, played: Played) -> list[dict[str, Any]]:
    """A process for each played rank, a thread for each of its streams."""
    found: list[dict[str, Any]] = []
    for coordinate, ranks in enumerate(step.players):
        for player, rank in enumerate(ranks):
            number = _process(step, coordinate, player)
            words = f"rank {rank} (stage {coordinate} of {len(step.players)})"
            found.append(_named("process_name", number, 0, words))
            found += [_named("thread_name", number, i, lane) for i, lane in enumerate(LANES)]
    for index, label in enumerate(step.labels):
        span_s = played.end_s[index] - played.start_s[index]
        if span_s <= 0:
            continue
        told: dict[str, Any] = {"micro batch": label.micro_batch, "stage": label.stage}
        if label.bytes:
            told["bytes"] = round(label.bytes)
        found.append(
            {
                "ph": "X",
                "pid": _process(step, label.coordinate, step.player_of[index]),
                "tid": LANES.index(label.lane),
                "ts": played.start_s[index] * 1e6,
                "dur": span_s * 1e6,
                "name": words_of(label, step),
                "cat": CLASSES[class_of(label)],
                "args": told,
            }
        )
    return found


def _process(step: Step, coordinate: int, player: int) -> int:
    return step.players[coordinate][player]


def _named(what: str, process: int, thread: int, words: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": words}}
