"""Splits that a recipe names itself, by module path, in torch's words for such styles."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from armillary.spec import SpecError, Split, nearest

NAMED = "_armillary_named_splits"
STYLES = {"colwise": ("column", 0), "rowwise": ("row", 1), "replicate": ("", 0)}


def name_splits(module: nn.Module, styles: Mapping[str, str]) -> None:
    """Have `module` split as `styles` says: path, or pattern of paths -> colwise, rowwise or
    replicate. What is not named is split as it is found.

    Raises: `SpecError` if a style is unknown.
    """
    for pattern, style in styles.items():
        if style not in STYLES:
            raise SpecError(
                f"recipe.tensor[{pattern!r}]",
                repr(style),
                f"a style is one of {', '.join(STYLES)} (models/named_splits.py)",
                nearest(style, STYLES),
            )
    module.__dict__[NAMED] = dict(styles)


def with_named(module: nn.Module, splits: tuple[Split, ...]) -> tuple[Split, ...]:
    """`splits` with those that the module's recipe names in place of those found.

    Raises: `SpecError` if a name fits no module that holds a weight.
    """
    for pattern, style in module.__dict__.get(NAMED, {}).items():
        paths = [p for p, m in module.named_modules() if fnmatchcase(p, pattern) and _weight(m)]
        if not paths:
            holders = [path for path, part in module.named_modules() if _weight(part)]
            raise SpecError(
                f"recipe.tensor[{pattern!r}]",
                "fits no module that holds a weight",
                "a name is a path of the model, with * for any part (models/named_splits.py)",
                nearest(pattern, holders),
            )
        for path in paths:
            kept = (split for split in splits if split.path.rpartition(".")[0] != path)
            splits = (*kept, *_named(path, module.get_submodule(path), style))
    return splits


def _weight(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim > 1


def _named(path: str, part: nn.Module, style: str) -> list[Split]:
    kind, dim = STYLES[style]
    found: list[Split] = []
    for name, parameter in part.named_parameters(recurse=False):
        if not kind or (kind == "row" and parameter.ndim < 2):
            continue
        found.append(
            Split(
                path=f"{path}.{name}",
                region=path,
                kind=kind,
                dim=dim,
                num_units=part.get_parameter("weight").shape[dim],
                unit="features",
                parameter_bytes=parameter.numel() * parameter.element_size(),
            )
        )
    return found
