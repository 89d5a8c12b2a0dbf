"""Where a run's numbers also go: TensorBoard events, and MLflow or W&B where asked for."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from armillary.spec import SpecError


class Tracker(Protocol):
    """A place for scalars by name and step."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Record `scalars` as those of `step`."""
        ...

    def close(self) -> None:
        """Write what is not yet written."""
        ...


FLUSH_EVERY_S = 30.0


class TensorBoard:
    """TensorBoard events in the run folder; the file is made when the first scalar comes.

    The scalars of a step are one event, written here and now: the package's SummaryWriter hands
    each scalar through two threads, which costs a step a millisecond.
    """

    def __init__(self, run_path: Path, name: str, parameters: Mapping[str, Any]) -> None:
        self._folder = run_path / "tensorboard"
        self._writer: Any = None
        self._flushed_s = 0.0

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        now_s = time.time()
        values = [Summary.Value(tag=name, simple_value=v) for name, v in scalars.items()]
        self._writer.write_event(Event(wall_time=now_s, step=step, summary=Summary(value=values)))
        if now_s - self._flushed_s > FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed_s = now_s

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class MLflow:
    """An MLflow run, at the tracking address that MLflow itself is set up with."""

    def __init__(self, run_path: Path, name: str, parameters: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(name)
        mlflow.start_run(run_name=run_path.name)
        mlflow.log_params(dict(parameters))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A W&B run, with the account or offline mode that W&B itself is set up with."""

    def __init__(self, run_path: Path, name: str, parameters: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=name, name=run_path.name, dir=str(run_path), config=dict(parameters)
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, tuple[Callable[[Path, str, Mapping[str, Any]], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise `SpecError` if a tracker is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise SpecError(
                "--tracker",
                repr(name),
                f"the trackers are {', '.join(TRACKERS)}",
                "use one of them",
            )
        package = TRACKERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise SpecError(
                "--tracker",
                f"{name}: the package {package} is not installed",
                "a tracker's own package writes for it",
                f"pip install {package}",
            )


def open_trackers(
    names: tuple[str, ...], run_path: Path, name: str, parameters: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers `names` of the run in `run_path`."""
    return [TRACKERS[tracker][0](run_path, name, parameters) for tracker in names]
