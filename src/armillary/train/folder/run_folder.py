"""The folder of a run: what it was, what was measured, and what it left. Read without torch."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from armillary.spec import Manifest, Plan, SpecError, closed_to_others, write_atomically
from armillary.spec.secrets import withheld


class RunFolder:
    """A run on disk. Writing is for rank 0; reading needs no torch and forgives a torn last line.

    Raises: `SpecError` from `open` if the path holds no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics_file: IO[str] | None = None
        self._flushed_s = 0.0

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The run at `path`."""
        if not (path / "manifest.json").is_file():
            raise SpecError(
                "run",
                f"{path} holds no manifest.json",
                "a run is a folder that `armillary train` made",
                "give the folder it named, such as runs/weather-20260101-120000",
            )
        return cls(path)

    @classmethod
    def create(cls, parent: Path, name: str) -> "RunFolder":
        """A new run folder in `parent`, named after the recipe and the time."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 100))):
            path = parent / f"{name}-{stamp}{suffix}"
            try:
                with closed_to_others():
                    path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise SpecError(
                    "runs",
                    f"{parent}: {error.strerror}",
                    "the runs folder can be written",
                    "name another with --runs",
                ) from None
            return cls(path)
        raise SpecError(
            "runs",
            f"99 runs named {name}-{stamp}",
            "a run has a folder of its own",
            "name another place with --runs",
        )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def manifest(self) -> Manifest:
        """What the run was."""
        return Manifest.read(self.path / "manifest.json")

    @property
    def plan(self) -> Plan | None:
        """The plan that the run's layout came from, None if it came from none."""
        path = self.path / "plan.json"
        return Plan.read(path) if path.is_file() else None

    def write_start(self, manifest: Manifest, recipe_files: dict[str, bytes]) -> None:
        """Write the manifest and the recipe's source."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path
        if len(recipe_files) > 1:
            target = self.path / "recipe"
            target.mkdir(exist_ok=True)
        for name, content in recipe_files.items():
            (target / ("recipe.py" if len(recipe_files) == 1 else name)).write_bytes(content)
        manifest.write(self.path / "manifest.json")

    def append(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, without secrets; the file is flushed once a second.

        Raises: `SpecError` if the disk does not take it.
        """
        now_s = time.monotonic()
        if line["kind"] == "event":
            line = line | {"message": withheld(str(line.get("message", "")))}
        try:
            if self._metrics_file is None:
                self._metrics_file = _open_for_append(self.path / "metrics.jsonl")
            self._metrics_file.write(json.dumps(line) + "\n")
            if now_s - self._flushed_s > 1.0 or line["kind"] != "step":
                self._metrics_file.flush()
                self._flushed_s = now_s
        except OSError as error:
            raise SpecError(
                "run",
                f"{self.path} cannot be written: {error.strerror}",
                "a run writes down what it does; what was saved before is kept",
                "free space, then --resume the run",
            ) from error

    def close(self) -> None:
        """Flush and close metrics.jsonl; lines that the disk does not take are lost."""
        if self._metrics_file is not None:
            with contextlib.suppress(OSError):
                self._metrics_file.close()
            self._metrics_file = None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order, without steps that a resumed run did again."""
        path = self.path / "metrics.jsonl"
        lines: list[dict[str, Any]] = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if line.get("what") in ("resumed", "rolled-back"):
                lines = [old for old in lines if not _is_undone(old, line["step"])]
            lines.append(line)
        return lines

    def evaluation(self) -> dict[str, Any] | None:
        """The comparison with the rivals on the test set, if the run came so far."""
        path = self.path / "evaluation.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_predictions(self, name: str, predictions: Mapping[str, NDArray[Any]]) -> None:
        """Keep the predictions `name`; arrays of unequal length are joined, with their lengths."""
        folder = self.path / "predictions"
        folder.mkdir(exist_ok=True)
        columns = {}
        for column, values in predictions.items():
            if values.dtype == object:
                columns[f"{column}.lengths"] = np.array([len(row) for row in values])
                values = np.concatenate(list(values))
            columns[column] = values
        np.savez_compressed(folder / f"{name}.npz", **columns)  # type: ignore[arg-type]

    def predictions(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The predictions that were kept under `name`, None if there are none."""
        path = self.path / "predictions" / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            columns = dict(file.items())
        for lengths in [column for column in columns if column.endswith(".lengths")]:
            bounds = np.cumsum(columns.pop(lengths))[:-1]
            column = lengths.removesuffix(".lengths")
            parts = np.split(columns[column], bounds)
            columns[column] = np.empty(len(parts), dtype=object)
            columns[column][:] = parts
        return columns

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write `values` to the file `name` of the run, atomically."""
        write_atomically(self.path / name, json.dumps(values, indent=2) + "\n")


def _is_undone(line: dict[str, Any], step: int) -> bool:
    """Whether a run resumed from the state after `step` steps does this line's work again."""
    is_work = line["kind"] in ("step", "evaluation") or line.get("what") == "skipped"
    return is_work and line["step"] > step


def _open_for_append(path: Path) -> IO[str]:
    """Open for appending, after cutting off a last line that a killed run left torn."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    return path.open("a", encoding="utf-8")
