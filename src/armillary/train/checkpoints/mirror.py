"""Checkpoints on a store as well: sent on beside training, fetched where the local ones are gone.

A store that does not answer stops nothing: the run goes on, says so, and sends the next.
"""

import contextlib
import json
import os
import queue
import shutil
import threading
from pathlib import Path, PurePosixPath

from armillary.step.world import World
from armillary.train.checkpoints.objects import Objects, open_objects
from armillary.train.checkpoints.saved import COMPLETE, checkpoint_path, find_fault, saved_steps

KEPT = 2
FINISH_S = 600.0


class Mirror:
    """Sends the checkpoints of a run to a store; used on rank 0, which alone is given one.

    Of a checkpoint, complete.json is sent last, and what has none is none. The newest two are kept.
    """

    def __init__(self, objects: Objects, folder: Path) -> None:
        self.objects, self.folder = objects, folder
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._said: queue.Queue[str] = queue.Queue()
        self._sent: int | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    @classmethod
    def of(cls, url: str, folder: Path, world: World) -> "Mirror | None":
        """The mirror at `url`, under the run's name; none for "", and on other ranks than 0.

        Raises: `SpecError` if `url` is no store.
        """
        if not url or not world.is_first:
            return None
        return cls(open_objects(url, folder.parent.name), folder)

    def send(self, step: int) -> list[str]:
        """Have a whole checkpoint sent, and return at once; what there is to say of others."""
        if not self._thread.is_alive():
            self._thread.start()
        self._steps.put(step)
        return self._take_said()

    def finish(self) -> list[str]:
        """Wait until the last is sent or has failed, at most ten minutes; what there is to say."""
        if self._thread.is_alive():
            self._steps.put(None)
            self._thread.join(FINISH_S)
        return self._take_said()

    def fetch_newer(self) -> list[str]:
        """Bring the store's newest checkpoint here if it is newer than what is whole here."""
        here = [s for s in saved_steps(self.folder) if _is_whole(self.folder, s)]
        try:
            newest = max(self._steps_there(), default=-1)
            if newest <= max(here, default=-1):
                return []
            self._fetch(newest)
        except Exception as error:
            return [f"{self.objects.place} was not asked for checkpoints: {_short(error)}"]
        return [f"step-{newest:08d} fetched from {self.objects.place}"]

    def _fetch(self, step: int) -> None:
        hidden = self.folder / f".step-{step:08d}"
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        prefix = f"step-{step:08d}/"
        for name in self.objects.names():
            if name.startswith(prefix):
                self.objects.get(name, hidden / PurePosixPath(name).name)
        fault = find_fault(hidden)
        if fault is not None:
            shutil.rmtree(hidden, ignore_errors=True)
            raise OSError(f"step-{step:08d} there is not whole: {fault}")
        final = checkpoint_path(self.folder, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(hidden, final)

    def _work(self) -> None:
        step: int | None = -1
        while step is not None:
            step = self._steps.get()
            while step is not None and not self._steps.empty():
                step = self._steps.get()  # the newest alone
            wanted = max(saved_steps(self.folder), default=None) if step is None else step
            if wanted is None or wanted == self._sent:
                continue
            try:
                self._put(wanted)
            except Exception as error:
                if not checkpoint_path(self.folder, wanted).is_dir():
                    continue  # dropped here meanwhile: newer ones are to be sent
                self._said.put(
                    f"{self.objects.place} did not take step-{wanted:08d}: {_short(error)}; "
                    "the run goes on"
                )
                self._failed = True
                continue
            if self._failed:
                self._said.put(f"{self.objects.place} takes checkpoints again: step-{wanted:08d}")
            self._sent, self._failed = wanted, False

    def _put(self, step: int) -> None:
        path = checkpoint_path(self.folder, step)
        names = [*json.loads((path / COMPLETE).read_text(encoding="utf-8"))["sha256"], COMPLETE]
        for name in names:
            self.objects.put(path / name, f"{path.name}/{name}")
        for old in sorted(self._steps_there())[:-KEPT]:
            prefix = f"step-{old:08d}/"
            there = [name for name in self.objects.names() if name.startswith(prefix)]
            for name in sorted(there, key=lambda name: not name.endswith(COMPLETE)):
                self.objects.delete(name)

    def _steps_there(self) -> list[int]:
        names = [PurePosixPath(name) for name in self.objects.names()]
        folders = [path.parent.name for path in names if path.name == COMPLETE]
        return [int(name.removeprefix("step-")) for name in folders if name.startswith("step-")]

    def _take_said(self) -> list[str]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._said.get_nowait())
        return found


def _is_whole(folder: Path, step: int) -> bool:
    return find_fault(checkpoint_path(folder, step)) is None


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
