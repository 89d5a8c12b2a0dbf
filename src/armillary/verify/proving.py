"""From the words of a command line to proofs: which recipes, on which layouts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from armillary.axes import admit
from armillary.spec import Layout, SpecError, read_layout
from armillary.step.recipe import Recipe, data_option, load_recipe
from armillary.verify.proof import Proof, prove
from armillary.verify.ranks import Ranks
from armillary.verify.telling import Telling

MOST_RANKS = 64


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
        if self.plan is not None:
            named.append(read_layout(self.plan))
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


def prove_all(wanted: Wanted, *, data: Path | None, num_steps: int, quiet: bool) -> list[Proof]:
    """The proof of every recipe, on one set of warm ranks, with progress.

    Raises: `SpecError` on a recipe or layout that cannot be proven.
    """
    layouts = wanted.find_layouts()
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
