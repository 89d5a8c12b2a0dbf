"""A run that its launcher has started again: which run it was, known as long as the launcher is.

torchrun keeps the words of its ranks, so a restarted rank is told to train anew. The store that its
agent serves lives on, and the first start leaves the run's folder there. With it live the addresses
of the ranks that are gone: torch 2.13 looks there for those of the new ones, and connects to the
dead. Here every start has a part of the store of its own.
"""

import os
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from armillary.train.launchers import Place
from armillary.train.request import TrainRequest

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

RUN, ROUND = "armillary/run", "armillary/round"
ALL_HERE = timedelta(minutes=10)
ANSWER = timedelta(seconds=20)


def agent_serves(place: Place) -> bool:
    """Whether the launcher's agent serves a store that outlives its ranks, as torchrun tells."""
    return place.has_store and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def known_run(place: Place) -> Path | None:
    """The folder of the run that these ranks have begun before; None on a first start."""
    if not agent_serves(place):
        return None
    try:
        store = _store(place)
        return Path(store.get(RUN).decode()) if store.check([RUN]) else None
    except RuntimeError:
        return None


def note_run(place: Place, path: Path) -> None:
    """Leave the run's folder with the agent; rank 0 does."""
    if agent_serves(place):
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


def meet_anew(place: Place) -> "Store":
    """A part of the agent's store that all ranks of this start share, and no earlier one knows.

    Rank 0 names it. Each of the others asks with a number of its own and is in once it has said so;
    what dead ranks have asked is answered too, and heard by nobody.

    Raises: `RuntimeError` if not all ranks come within ten minutes.
    """
    import torch.distributed as dist

    store, mine = _store(place), uuid.uuid4().hex
    if place.rank == 0:
        _let_in(store, mine, place.world_size)
        return dist.PrefixStore(f"{ROUND}/{mine}", store)
    store.set(f"{ROUND}/asked/{place.rank}", mine)
    store.wait([f"{ROUND}/answer/{mine}"], ALL_HERE)
    found = store.get(f"{ROUND}/answer/{mine}").decode()
    store.set(f"{ROUND}/{found}/in/{place.rank}", "")
    return dist.PrefixStore(f"{ROUND}/{found}", store)


def _let_in(store: "TCPStore", name: str, world_size: int) -> None:
    give_up_s = time.monotonic() + ALL_HERE.total_seconds()
    outside = set(range(1, world_size))
    while outside:
        for rank in sorted(outside):
            if store.check([f"{ROUND}/asked/{rank}"]):
                asked = store.get(f"{ROUND}/asked/{rank}").decode()
                store.set(f"{ROUND}/answer/{asked}", name)
            if store.check([f"{ROUND}/{name}/in/{rank}"]):
                outside.discard(rank)
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"Timed out waiting for ranks {sorted(outside)[:8]}")
        time.sleep(0.02)


def _store(place: Place) -> "TCPStore":
    import torch.distributed as dist

    return dist.TCPStore(
        place.master_address,
        place.master_port,
        is_master=False,
        timeout=ANSWER,
        wait_for_workers=False,
    )
