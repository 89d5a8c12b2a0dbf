"""From the words of a command line to proofs: which recipes, on which layouts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from armillary.axes import admit
from armillary.spec import Layout, SpecError, read_plan
from armillary.step.recipe import Recipe, data_option, load_recipe
from armillary.step.world import count_shares
from armillary.verify.proof import Proof, prove
from armillary.verify.ranks import Ranks
from armillary.verify.telling import Telling, note_plan

MOST_RANKS = 64
MOST_RANKS_OF_A_PLAN = 8
"""A plan is of a machine; one of more ranks than these is proven by its axes at degree 2."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be proven: recipes, and their layouts by words, by a file, or all of them."""

    recipes: list[str]
    layouts: list[str]
    plan: Path | None
    all_up_to: int
    options: Mapping[str, str]

    def find_layouts(self) -> list[Layout] | int:
        """The layouts that are named, or the number of ranks up to which all are meant.

        Raises: `SpecError` if none is named, or one is no layout.
        """
        if self.all_up_to:
            if not 2 <= self.all_up_to <= MOST_RANKS:
                raise SpecError(
                    "--all",
                    f"{self.all_up_to} ranks",
                    f"all layouts are proven on 2 to {MOST_RANKS} local ranks",
                    "use --all 8",
                )
            return self.all_up_to
        named = [Layout.parse(words) for words in self.layouts]
        for layout in named:
            _refuse_more_than_fit(layout)
        if self.plan is not None:
            named.append(of_plan(self.plan))
        if not named:
            raise SpecError(
                "--layout",
                "missing",
                "a layout is named, or --all",
                "use --all 8 or --layout data=2",
            )
        for layout in named:
            admit(layout)
        return named


def of_plan(path: Path) -> Layout:
    """The layout in a file, made for this machine: of more ranks than a few its axes at degree 2,
    and of several micro batches some of the batch that is verified.

    Raises: `SpecError` if the file holds no layout.
    """
    layout, plan = read_plan(path)
    admit(layout)
    size = layout.micro_batch_size
    if plan is not None and size * count_shares(layout) >= plan.global_batch_size:
        size = 0  # one micro batch, here as there
    return on_this_host(replace(layout, micro_batch_size=size))


def on_this_host(layout: Layout) -> Layout:
    """`layout`, or if it has more ranks than one machine's few, its axes at degree 2."""
    if layout.num_ranks <= MOST_RANKS_OF_A_PLAN:
        return layout
    degrees = {axis: min(degree, 2) for axis, degree in layout.degrees.items()}
    return replace(layout, degrees=degrees, micro_batch_size=min(layout.micro_batch_size, 1))


def _refuse_more_than_fit(layout: Layout) -> None:
    if layout.num_ranks > MOST_RANKS:
        raise SpecError(
            "--layout",
            f"{layout} is for {layout.num_ranks} ranks",
            f"a layout is proven on at most {MOST_RANKS} local ranks",
            f"prove the same axes at degree 2: --layout {on_this_host(layout)}",
        )


def prove_all(wanted: Wanted, *, data: Path | None, num_steps: int, quiet: bool) -> list[Proof]:
    """The proof of every recipe, on one set of warm ranks, with progress.

    Raises: `SpecError` on a recipe or layout that cannot be proven.
    """
    layouts = wanted.find_layouts()
    if wanted.plan is not None and not quiet:
        note_plan(wanted.plan, of_plan(wanted.plan))
    found = [_load(word, wanted.options, data) for word in wanted.recipes]
    proofs = []
    with Ranks() as ranks:
        for recipe in found:
            telling = Telling(recipe.name, quiet=quiet)
            try:
                proofs.append(
                    prove(
                        recipe,
                        ranks,
                        layouts,
                        num_steps=num_steps,
                        started=telling.started,
                        told=telling.told,
                    )
                )
            finally:
                telling.ended()
    return proofs


def _load(word: str, options: Mapping[str, str], data: Path | None) -> Recipe:
    """The recipe `word`; the data's path is given to it if it reads one."""
    found = data_option(load_recipe(word, options), options, data)
    paths = {name: str(Path(path).resolve()) for name, path in found.items()}
    return load_recipe(word, {**options, **paths})
