"""A site: how its jobs are asked for and its ranks started, from one TOML file, each with a source.

A file of `train/sites`, or one of your own. Every table names its `source`; `[tag]` at its start is
a page of `machines/data/sources/pages.toml`. What is not known is left out of the script, and
stands in `unknown`, which the script repeats as a comment.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from armillary.machines import load
from armillary.machines.sourced import pages
from armillary.spec import Document, SpecError, nearest, reason

SITES = Path(__file__).parents[1] / "sites"
CONDITIONS = ("", "container", "bare")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line(Document):
    """A line of a job script, and where it was learnt.

    `when` restricts it to jobs with a container, or without ("bare"). `{nodes}` and the like in
    `text` are filled in from the job, `{option}` from the options that the site has.
    """

    text: str
    source: str
    when: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option(Document):
    """A word of the site's own, such as its file systems; without a default it has to be given."""

    name: str
    source: str
    default: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit(Document):
    """What a queue takes: nodes from and to, and hours. Several bounds of one queue all hold."""

    source: str
    queue: str = ""
    min_nodes: int = 1
    max_nodes: int | None = None
    max_hours: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Size(Document):
    """A number and where it was learnt."""

    value: int
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Site(Document):
    """How jobs of one machine are written.

    `machine` has the number of nodes and of ranks a node, unless the file says other ones. `start`
    starts a command on every rank; `each_rank` are shell lines that a rank runs first; `address` is
    a shell word for the address of rank 0's node. `queue` asks for a queue where the batch system's
    usual word does not; a site with an `account` charges every job to one.
    """

    what: ClassVar[str] = "site"
    title: str
    scheduler: str
    start: Line
    machine: str = ""
    num_nodes: Size | None = None
    ranks_per_node: Size | None = None
    account: Line | None = None
    queue: Line | None = None
    options: tuple[Option, ...] = ()
    limits: tuple[Limit, ...] = ()
    directives: tuple[Line, ...] = ()
    setup: tuple[Line, ...] = ()
    each_rank: tuple[Line, ...] = ()
    address: Line | None = None
    port: Size | None = None
    container: Line | None = None
    notes: tuple[Line, ...] = ()
    unknown: tuple[str, ...] = ()

    def size(self) -> tuple[int, int]:
        """(nodes of the machine, ranks a node), the file's own or its machine's.

        Raises: `SpecError` if neither tells.
        """
        if self.num_nodes and self.ranks_per_node:
            return self.num_nodes.value, self.ranks_per_node.value
        if not self.machine:
            raise SpecError(
                "site.machine",
                f"{self.title} names no machine",
                "a site has num_nodes and ranks_per_node, or a machine that has them",
                "add machine = one of `armillary machines`, or both numbers with their sources",
            )
        found = load(self.machine)
        return (
            self.num_nodes.value if self.num_nodes else found.num_nodes,
            self.ranks_per_node.value if self.ranks_per_node else found.ranks_per_node,
        )


def names() -> tuple[str, ...]:
    """The names of the sites we have: one file each."""
    return tuple(sorted(path.stem for path in SITES.glob("*.toml")))


def read_site(word: str) -> Site:
    """The site of that name, or in the TOML file at that path.

    Raises: `SpecError` on a name we have not, and on a file that is not right.
    """
    path = SITES / f"{word}.toml" if word in names() else Path(word)
    if path.suffix != ".toml" or not path.is_file():
        raise SpecError(
            "--site",
            f"{word!r}" if word else "no site was named",
            "a site is a file of train/sites, or the path of a TOML file of your own",
            nearest(word, names()),
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(
            path.name, f"cannot be read: {reason(error)}", "a site is a TOML file", "mend the file"
        ) from None
    site = Site.from_dict(values, path.stem)
    _check(site, path.stem)
    return site


def _check(site: Site, where: str) -> None:
    """Refuse lines without a source, with an unknown tag, or under an unknown condition."""
    single = (site.start, site.account, site.queue, site.address, site.container)
    lines = [line for line in single if line is not None]
    for group in (site.directives, site.setup, site.each_rank, site.notes):
        lines += group
    for line in lines:
        if line.when not in CONDITIONS:
            _refuse(where, f"when = {line.when!r}", "when is container, bare or absent")
    sources = [line.source for line in lines]
    sources += [option.source for option in site.options]
    sources += [limit.source for limit in site.limits]
    sizes = (site.num_nodes, site.ranks_per_node, site.port)
    for source in sources + [size.source for size in sizes if size]:
        _check_source(where, source)
    for line in site.each_rank:
        if "'" in line.text:
            _refuse(where, line.text, "each_rank is put between single quotes, and has none")


def _check_source(where: str, source: str) -> None:
    tag = re.match(r"\[(\w+)\]", source)
    if not source or (tag and tag[1] not in pages()):
        _refuse(where, f"source {source!r}", "a source is a page's tag, or words of your own")


def _refuse(where: str, found: str, rule: str) -> None:
    raise SpecError(f"site.{where}", found, f"{rule} (train/submit/site.py)", "mend the file")


def fill(text: str, values: Mapping[str, Any], where: str) -> str:
    """`text` with `{name}` replaced by the values; braces of the shell, `${name}`, stay.

    Raises: `SpecError` on a name that there is no value for.
    """

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise SpecError(
                where, text, "a line is filled in from the job", nearest(match[1], values)
            )
        return str(values[match[1]])

    return re.sub(r"(?<!\$)\{(\w+)\}", replaced, text)


def chosen(lines: Iterable[Line], *, has_container: bool) -> list[Line]:
    """The lines that hold for a job with a container, or without."""
    left_out = "bare" if has_container else "container"
    return [line for line in lines if line.when != left_out]
