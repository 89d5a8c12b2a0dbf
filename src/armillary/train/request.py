"""What a person asked to train, checked before any rank starts."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from armillary.axes import admit
from armillary.spec import Layout, Manifest, Plan, SpecError, TrainSettings
from armillary.spec.secrets import holds_key, holds_secret, is_secret_name
from armillary.step.recipe import Recipe, data_option, load_recipe, source_sha256
from armillary.train.checkpoints.objects import check_address
from armillary.train.folder.run_folder import RunFolder
from armillary.train.folder.trackers import check_trackers


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """A run to do: the recipe and its options, layout, settings, folder and device.

    A new run has no `run_path` yet: rank 0 makes its folder in `runs`. `plan` is what the layout
    came from, if it was planned. `may_replan` says that nobody asked for this very layout, so that
    other ranks than it is for may go on with another. A run that is started again by itself has a
    `restart_note` of what ended it, and begins anew where nothing was saved. `weights` is a file
    that the model begins from.
    """

    recipe_word: str
    options: Mapping[str, Any]
    layout: Layout
    settings: TrainSettings
    runs: Path = Path("runs")
    run_path: Path | None = None
    is_resumed: bool = False
    device: str = "auto"
    quiet: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)
    plan: Plan | None = None
    may_replan: bool = False
    restart_note: str = ""
    weights: Path | None = None

    def load_recipe(self) -> Recipe:
        """The recipe with the request's options."""
        return load_recipe(self.recipe_word, self.options)


def new_request(
    recipe_word: str,
    *,
    layout: Layout | None = None,
    plan: Plan | None = None,
    assignments: Mapping[str, str] | None = None,
    data: Path | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
    quiet: bool = False,
    trackers: tuple[str, ...] = ("tensorboard",),
    weights: Path | None = None,
) -> TrainRequest:
    """A request for a new run, whose folder will be made in `runs`.

    `assignments` are settings and options of the recipe in words, as `--set` takes them.

    Raises: `SpecError` on whatever cannot be done.
    """
    layout = layout or Layout()
    admit(layout)
    check_trackers(trackers)
    if weights is not None:
        from armillary.train.checkpoints.weights import check_file

        check_file(weights)
    settings_words = {
        name: text for name, text in (assignments or {}).items() if name in TrainSettings.names()
    }
    options: dict[str, Any] = {
        name: text for name, text in (assignments or {}).items() if name not in settings_words
    }
    recipe = load_recipe(recipe_word)
    found = data_option(recipe, options, data)
    if data is not None and not found:
        raise SpecError(
            "--data",
            str(data),
            "the recipe reads a path if its data() takes one",
            "give data() a parameter `path`, or leave --data out",
        )
    recipe = load_recipe(recipe_word, options | found)
    refuse_secrets(recipe)
    settings = _settings(recipe, settings_words)
    check_address(settings.checkpoint_store)
    return TrainRequest(
        recipe_word=recipe.word,
        options=recipe.options,
        layout=layout,
        settings=settings,
        runs=runs,
        device=device,
        quiet=quiet,
        trackers=trackers,
        plan=plan,
        weights=weights.absolute() if weights else None,
    )


def resumed_request(
    run: Path,
    *,
    layout: Layout | None = None,
    plan: Plan | None = None,
    assignments: Mapping[str, str] | None = None,
    device: str = "auto",
    quiet: bool = False,
    trackers: tuple[str, ...] = ("tensorboard",),
) -> TrainRequest:
    """A request to go on with the run in folder `run`, on its own layout or another.

    Only what may change in a run may be set anew: its length, patience and cadence, not what the
    steps compute.

    Raises: `SpecError` if the folder holds no run, or a setting cannot change.
    """
    manifest = RunFolder.open(run).manifest
    if layout is not None:
        admit(layout)
    changed = {}
    for name, text in (assignments or {}).items():
        if name not in _MAY_CHANGE:
            raise SpecError(
                f"settings.{name}",
                f"{text} for a run that has begun",
                f"a resumed run may change {', '.join(_MAY_CHANGE)}",
                "leave it out, or start a new run",
            )
        changed[name] = TrainSettings.parse(name, text)
    check_address(str(changed.get("checkpoint_store", "")))
    return TrainRequest(
        recipe_word=_unchanged_recipe(run, manifest),
        options=manifest.options,
        layout=layout or manifest.layout,
        settings=replace(manifest.settings, **changed),
        run_path=run,
        is_resumed=True,
        device=device,
        quiet=quiet,
        trackers=trackers,
        plan=plan,
        may_replan=layout is None,
    )


def refuse_secrets(recipe: Recipe) -> None:
    """Refuse keys and passwords where a run would write them down: in options and in the recipe.

    Raises: `SpecError` that names the place, and not the secret.
    """
    for name, value in recipe.options.items():
        if not isinstance(value, str | Path) or not str(value):
            continue
        if is_secret_name(name) or holds_secret(str(value)):
            raise SpecError(
                f"{recipe.name}.{name}",
                "a key or a password",
                "options are written into the manifest, the report and trackers, and stand in the "
                "list of processes (spec/secrets.py)",
                "export it as a variable, and read os.environ in the recipe",
            )
    for name, content in recipe.files.items():
        if holds_key(content.decode("utf-8", errors="replace")):
            raise SpecError(
                f"{recipe.name}: {name}",
                "a key stands in the source",
                "a run keeps a copy of its recipe (spec/secrets.py)",
                "read os.environ instead, and make the key invalid if the file was shared",
            )


_MAY_CHANGE = (
    "epochs",
    "max_steps",
    "patience",
    "evaluate_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "log_every_steps",
    "num_workers",
    "checkpoint_every_s",
    "hours_between_failures",
    "checkpoint_store",
    "restarts",
    "hang_steps",
    "hang_least_s",
    "skip_batches",
    "spike_deviations",
)


def _settings(recipe: Recipe, words: Mapping[str, str]) -> TrainSettings:
    defaults = TrainSettings.from_dict(dict(recipe.defaults), f"{recipe.name}.settings")
    return replace(defaults, **{name: TrainSettings.parse(name, t) for name, t in words.items()})


def _unchanged_recipe(run: Path, manifest: Manifest) -> str:
    """Where the run's recipe is to be loaded from: its own place, or the copy that the run keeps.

    The copy is taken if the recipe is gone or has changed since the run began, which is found
    without running either.

    Raises: `SpecError` if everybody could have written the copy.
    """
    if source_sha256(manifest.recipe) == manifest.recipe_sha256:
        return manifest.recipe
    kept = [p for p in (run / "recipe.py", run / "recipe" / "__init__.py") if p.is_file()]
    if not kept:
        return manifest.recipe
    for path in (run, kept[0].parent, kept[0]):
        if path.stat().st_mode & stat.S_IWOTH:
            raise SpecError(
                "run",
                f"{path} can be written by everybody",
                "the recipe that a run keeps is code, and is run where only its owner and group "
                "can have written it (train/request.py)",
                f"look at {kept[0]}, then chmod -R o-w {run}",
            )
    return str(kept[0])
