"""Runs made for a test, and what they left: losses, parameters, predictions."""

from pathlib import Path
from typing import Any

from armillary.spec import Layout
from tests.parity.ranks import Ranks, train_as_rank

CASES = Path(__file__).parent / "cases"


class Bench:
    """Trains the cases of this folder on persistent ranks, each in a folder of its own."""

    def __init__(self, ranks: Ranks, runs: Path) -> None:
        self.ranks, self.runs = ranks, runs

    def train(
        self, case: str, layout: str = "", stop_after: int = 0, **assignments: Any
    ) -> "Result":
        """A new run of `case` on `layout`; one rank is told to stop after `stop_after` steps."""
        from armillary.train.request import new_request

        request = new_request(
            case if case.endswith(".py") else str(CASES / f"{case}.py"),
            layout=Layout.parse(layout),
            runs=self.runs,
            quiet=True,
            trackers=(),
            assignments={name: str(value) for name, value in assignments.items()},
        )
        return self._run(request, stop_after)

    def resume(self, run: Path, layout: str | None = None, **assignments: Any) -> "Result":
        """The run at `run` gone on with, on its own layout or another."""
        from armillary.train.request import resumed_request

        request = resumed_request(
            run,
            layout=None if layout is None else Layout.parse(layout),
            quiet=True,
            trackers=(),
            assignments={name: str(value) for name, value in assignments.items()},
        )
        return self._run(request)

    def _run(self, request: Any, stop_after: int = 0) -> "Result":
        ended = self.ranks.run(
            request.layout.num_ranks, train_as_rank, request, self.runs, stop_after
        )
        assert len(set(ended)) == 1, "every rank ends alike"
        return Result(*ended[0])


class Result:
    """A run's folder as numbers."""

    def __init__(self, path: Path, exit_code: int = 0) -> None:
        from armillary.train.folder.run_folder import RunFolder

        self.path, self.exit_code = path, exit_code
        self.folder = RunFolder.open(path)
        self.lines = self.folder.metrics()

    def column(self, name: str) -> list[float]:
        """The values of `name` in the lines of steps."""
        return [line[name] for line in self.lines if line["kind"] == "step"]

    @property
    def losses(self) -> list[float]:
        return self.column("loss")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == "evaluation"]

    def events(self, what: str) -> list[str]:
        """The messages of the events of a kind."""
        found = (line for line in self.lines if line["kind"] == "event")
        return [line["message"] for line in found if line["what"] == what]

    def parameters(self) -> dict[str, Any]:
        """The model's tensors in the newest checkpoint, whatever layout wrote it."""
        import torch

        from armillary.step.recipe import load_recipe
        from armillary.train.checkpoints.saved import checkpoint_path, saved_steps
        from armillary.train.checkpoints.state import restore_model

        manifest = self.folder.manifest
        model = load_recipe(manifest.recipe, manifest.options).model()
        if manifest.layout.precision == "float64":
            model = model.to(torch.float64)
        checkpoints = self.folder.checkpoints
        restore_model(
            model, checkpoint_path(checkpoints, max(saved_steps(checkpoints))), serial=True
        )
        return dict(model.state_dict())


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of any entry, relative to the largest entry of its tensor.

    A tensor that is small beside the model's largest is measured by a hundredth of that: one whose
    gradient is zero by symmetry, such as an attention's key bias, holds only rounding.
    """
    assert ours.keys() == theirs.keys()
    least = 0.01 * max(float(tensor.abs().max()) for tensor in theirs.values())
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=least))
        for name in ours
    )


def largest_relative(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two lists of equal length."""
    assert len(ours) == len(theirs) > 0
    return max(abs(a - b) / max(abs(b), 1e-300) for a, b in zip(ours, theirs, strict=True))
