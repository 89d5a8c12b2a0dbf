"""A rank that fails: the first cause is told once, with its rank, however many ranks fall by it."""

import contextlib
import hashlib
import json
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch

from armillary.spec import SpecError
from armillary.train.launchers import Place, find_here
from armillary.train.start.rendezvous import LEFT, linger, refuse_unknown_address, serving
from armillary.train.survive.watch import HUNG

PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Connection refused",
    "failed to connect",
)


class RankError(RuntimeError):
    """A rank failed of something that is not the user's mistake: its rank, and its traceback or how
    it ended.

    `is_lost` says that the rank or its device went away, which another start may cure.
    """

    def __init__(self, rank: int, text: str, *, is_lost: bool = False, advice: str = "") -> None:
        super().__init__(f"rank {rank} failed\n{text}" + (f"; {advice}" if advice else ""))
        self.rank, self.text, self.is_lost = rank, text, is_lost

    @property
    def summary(self) -> str:
        """What ended the rank, in a line."""
        *before, last = self.text.strip().splitlines() or ["failed"]
        return last if before else f"rank {self.rank} {last}"


class ToldElsewhere(RuntimeError):
    """This rank failed of what another rank tells."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether `error` only tells that another rank is gone."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_LOST)


def leave_error(folder: Path, rank: int, error: BaseException) -> None:
    """Leave `error` in `folder` for the process that started the rank."""
    content = {
        "time": time.time(),
        "rank": rank,
        "spec": error.to_dict() if isinstance(error, SpecError) else None,
        "is_lost_peer": is_lost_peer(error),
        "is_lost": isinstance(error, torch.AcceleratorError),
        "traceback": traceback.format_exc(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(content), encoding="utf-8")


def first_error(folder: Path, exit_codes: Mapping[int, int]) -> Exception:
    """The error that brought the ranks down: the earliest that is no mere loss of a peer.

    `exit_codes` are those of the ranks that failed, by rank; a negative one is a signal's number.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    found.sort(key=lambda entry: entry["time"])
    causes = [entry for entry in found if not entry["is_lost_peer"]]
    if not causes:
        for rank, code in exit_codes.items():
            if code < 0 and -code not in (signal.SIGTERM, signal.SIGINT):
                return RankError(
                    rank,
                    f"killed by {signal.Signals(-code).name}",
                    is_lost=True,
                    advice="what was saved is whole, go on with --resume",
                )
            if code == HUNG:
                return RankError(rank, "ended: no progress", is_lost=True)
    for entry in causes or found:
        if entry["spec"] is not None:
            return SpecError(**entry["spec"])
        is_lost = entry["is_lost"] or entry["is_lost_peer"]
        return RankError(entry["rank"], entry["traceback"], is_lost=is_lost)
    rank, code = next(iter(exit_codes.items()))
    return RankError(rank, f"left with exit code {code} and no error", is_lost=True)


@contextlib.contextmanager
def telling_once() -> Iterator[None]:
    """Under a launcher of many ranks an error passes on one, and is `ToldElsewhere` on others.

    The ranks agree through the store that they meet at; a rank that cannot reach it tells its
    error. What the variables themselves contradict is told by every rank, as none knows its own.
    """
    place = find_here()
    if place is None or place.world_size == 1:
        yield
        return
    _refuse_once_a_node(place)
    try:
        with serving(place) as store:
            try:
                yield
            except Exception as error:
                if is_lost_peer(error):
                    raise ToldElsewhere(str(error)) from None
                is_first = _is_first_to_tell(place, str(error))
                linger(store, place)
                if not is_first:
                    raise ToldElsewhere(str(error)) from None
                raise
    except (SpecError, ToldElsewhere):
        raise
    except Exception:
        raise RankError(place.rank, traceback.format_exc()) from None


def _refuse_once_a_node(place: Place) -> None:
    """Refuse an address that this node does not know; without it no store could be asked."""
    try:
        refuse_unknown_address(place)
    except SpecError as error:
        if place.local_rank > 0:
            raise ToldElsewhere(str(error)) from None
        raise


def _is_first_to_tell(place: Place, text: str) -> bool:
    import torch.distributed as dist

    key = f"armillary/error/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        store = dist.TCPStore(
            place.master_address,
            place.master_port,
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        is_first = int(store.add(key, 1)) == 1
        store.add(LEFT, 1)
        return is_first
    except (RuntimeError, ValueError):
        return True
