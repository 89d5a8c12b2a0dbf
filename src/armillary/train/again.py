"""A run that its launcher has started again: which run it was, known as long as the launcher is.

torchrun keeps the words of its ranks, so a restarted rank is told to train anew. The store that its
agent serves lives on, and the first start leaves the run's folder there.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from armillary.train.launchers import Place
from armillary.train.request import TrainRequest

if TYPE_CHECKING:
    from torch.distributed import TCPStore

RUN = "armillary/run"
ANSWER = timedelta(seconds=20)


def known_run(place: Place) -> Path | None:
    """The folder of the run that these ranks have begun before; None on a first start."""
    if not place.has_store:
        return None
    try:
        store = _store(place)
        return Path(store.get(RUN).decode()) if store.check([RUN]) else None
    except RuntimeError:
        return None


def note_run(place: Place, path: Path) -> None:
    """Leave the run's folder with the agent; rank 0 does."""
    if place.has_store:
        _store(place).set(RUN, str(path.absolute()))


def started_again(request: TrainRequest, run: Path) -> TrainRequest:
    """The request to go on with `run` after ranks were lost, on whatever ranks are left."""
    return replace(
        request,
        run_path=run,
        is_resumed=True,
        may_replan=True,
        restart_note="the launcher has started the ranks again",
    )


def _store(place: Place) -> "TCPStore":
    import torch.distributed as dist

    return dist.TCPStore(
        place.master_address,
        place.master_port,
        is_master=False,
        timeout=ANSWER,
        wait_for_workers=False,
    )
