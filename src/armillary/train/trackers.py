"""Where a run's numbers also go: TensorBoard events, and MLflow or W&B where a run of them is on."""

import importlib.util
from collections.abc import Mapping
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


class TensorBoard:
    """TensorBoard events in the run folder; the writer is made when the first scalar comes."""

    def __init__(self, run_path: Path, name: str, parameters: Mapping[str, Any]) -> None:
        self._folder, self._writer = run_path / "tensorboard", None

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

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


TRACKERS = {
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
