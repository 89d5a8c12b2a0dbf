"""Numbers with their sources, as machine files write them, taken apart into numbers and sources.

A number is written `{ value = 8, source = "..." }`; or, where nobody has published it,
`{ bound = 5e-6, from = "...", because = "..." }` (a plan uses the bound: `from` says where the
number could come from, `because` on which side the bound errs) or `{ from = "..." }` (a plan does
without). A table with a `source` of its own vouches for the plain numbers in it. `[tag]` at the
start of a source stands for a page that `data/sources/pages.toml` names in full.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from armillary.spec import SpecError, nearest, reason

DATA = Path(__file__).parent / "data"
NUMBER_KEYS = ({"value", "source"}, {"bound", "from", "because"}, {"from"})


def read_toml(path: Path) -> dict[str, Any]:
    """The tables in the TOML file at `path`.

    Raises: `SpecError` if it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            str(path),
            f"cannot be read: {reason(error)}",
            "a machine file is a TOML file",
            "check the path",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            path.name,
            f"not TOML: {error}",
            "a machine file is a TOML file",
            "mend that line; `armillary machines --template` prints one that is right",
        ) from None


@cache
def pages() -> Mapping[str, str]:
    """The full names of the pages that sources cite by tag."""
    return {
        tag: str(page["what"]) for tag, page in read_toml(DATA / "sources" / "pages.toml").items()
    }


class Ledger:
    """Where the numbers of one document come from, by path, as they are taken out of its tables."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.sources: dict[str, str] = {}
        self.unknown: dict[str, str] = {}

    def plain(self, values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        """`values` with every number plain, and its source noted under its path.

        Raises: `SpecError` on a number without a source, and on an unknown tag.
        """
        source = values.get("source", "")
        found: dict[str, Any] = {}
        for key, value in values.items():
            inner = f"{path}.{key}" if path else key
            if is_number(value):
                found[key] = self._vouched(value, source, inner)
            elif isinstance(value, Mapping):
                taken = self._taken(value, inner)
                if taken is not None:
                    found[key] = taken
            elif isinstance(value, list):
                found[key] = [self._entry(entry, f"{inner}", i) for i, entry in enumerate(value)]
            else:
                found[key] = self.cited(value, inner) if key == "source" else value
        return found

    def _entry(self, value: Any, path: str, index: int) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("name", value.get("degree", index))
        return self.plain(value, f"{path}.{name}")

    def _taken(self, value: Mapping[str, Any], path: str) -> Any:
        """A sourced number as a number, none if it is unknown; another table as a table."""
        keys = set(value)
        if keys not in NUMBER_KEYS:
            if keys & {"value", "bound"}:
                raise SpecError(
                    f"{self.where}.{path}",
                    f"the keys {', '.join(sorted(keys))}",
                    "a number is { value, source }, or { bound, from, because }, or { from }",
                    "give what is missing",
                )
            return self.plain(value, path)
        if "from" in keys:
            return self._bound(value, path)
        self.sources[path] = self.cited(value["source"], path)
        return self._number(value["value"], path)

    def _bound(self, value: Mapping[str, Any], path: str) -> Any:
        could_come = self.cited(value["from"], path)
        if "bound" not in value:
            self.unknown[path] = f"not known; it could come from {could_come}"
            return None
        number = self._number(value["bound"], path)
        self.unknown[path] = (
            f"not known; it could come from {could_come}. {number:g} stands in its place: "
            f"{self.cited(value['because'], path)}"
        )
        return number

    def _number(self, value: Any, path: str) -> Any:
        if not is_number(value):
            raise SpecError(
                f"{self.where}.{path}", f"{value!r}", "the value is a number", "give the number"
            )
        return value

    def _vouched(self, value: Any, source: str, path: str) -> Any:
        if not source:
            raise SpecError(
                f"{self.where}.{path}",
                f"{value!r} without a source",
                "every number of a machine says where it comes from",
                f"write {{ value = {value!r}, source = "
                '"page, paper or measurement" }, or give the table a source',
            )
        self.sources[path] = self.cited(source, path)
        return value

    def cited(self, source: Any, path: str) -> str:
        """`source` with its tags, `[tag]`, written out."""
        if not isinstance(source, str) or len(source) < 4:
            raise SpecError(
                f"{self.where}.{path}",
                f"the source {source!r}",
                "a source is a page, a paper or a measurement, in words",
                "name it",
            )
        for tag in re.findall(r"\[([a-z0-9_]+)\]", source):
            if tag not in pages():
                raise SpecError(
                    f"{self.where}.{path}",
                    f"the source [{tag}]",
                    "a tag stands for a page of data/sources/pages.toml",
                    nearest(tag, pages()),
                )
        named = re.sub(r"\[([a-z0-9_]+)\](?= *[;:.,)]|$)", lambda tag: pages()[tag[1]], source)
        return re.sub(r"\[([a-z0-9_]+)\]", lambda tag: f"{pages()[tag[1]]},", named)


def is_number(value: Any) -> bool:
    """Whether `value` is a number, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
