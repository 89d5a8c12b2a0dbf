"""The job script that somebody who knows the site would write."""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from armillary.spec import Layout, SpecError, nearest, read_layout
from armillary.train.submit.job import EXIT_CODE, LOG, PLAN, JobWords
from armillary.train.submit.schedulers import Ask, Scheduler, named
from armillary.train.submit.site import Limit, Line, Site, chosen, fill

LEAVE_S = 300
"""How long before its end a job is told. Source: [olcf] documents --signal=B:USR1@300; a quarter of
shorter jobs."""
LOST_RANKS = """\
# Lost ranks are started again in the same job, if anything was saved since their last start. Not so
# where the run is done (0), has bad input (2), a loss that is not finite (3), or was told to leave.
case "$code" in 0|2|3|75) break ;; esac
saved_now=$(ls -d "$job"/runs/*/checkpoints/step-* 2>/dev/null | tail -n 1)
[ "${leave:-no}" = yes ] && break
if [ -z "$saved_now" ] || [ "$saved_now" = "$saved_before" ]; then break; fi
saved_before=$saved_now
echo "ranks were lost (exit code $code): they are started again"
done"""
UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A job's words, checked against its site."""

    words: JobWords
    site: Site
    scheduler: Scheduler
    layout: Layout
    nodes: int
    ranks_per_node: int
    time_s: int
    queue: str
    options: dict[str, str]
    advice: str = ""

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.ranks_per_node


def seconds(text: str) -> int:
    """`6h`, `90min`, `2d`, `600s`, `06:00:00` in seconds.

    Raises: `SpecError` on anything else, and on no time at all.
    """
    clock = re.fullmatch(r"(\d+):(\d{2}):(\d{2})", text)
    plain = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    found = 0
    if clock:
        found = int(clock[1]) * 3600 + int(clock[2]) * 60 + int(clock[3])
    elif plain:
        found = round(float(plain[1]) * UNITS_S[plain[2]])
    if found < 1:
        raise SpecError(
            "--time", repr(text), "a time is a number and a unit", "write 6h, 90min or 06:00:00"
        )
    return found


def check(words: JobWords, site: Site) -> Asked:
    """The job that `words` ask for at `site`.

    Raises: `SpecError` on what the machine, its queues or the layout do not admit.
    """
    num_nodes, ranks_per_node = site.size()
    if not 1 <= words.nodes <= num_nodes:
        raise SpecError(
            "--nodes",
            f"{words.nodes} of the {num_nodes} nodes of {site.title}",
            "a job has at least one node and at most those of its machine",
            f"use 1 to {num_nodes}",
        )
    time_s = seconds(words.time)
    if site.account is not None and not words.account:
        raise SpecError(
            "--account",
            "not given",
            f"{site.title} charges every job to an account ({site.account.source})",
            "name your project with --account",
        )
    return Asked(
        words=words,
        site=site,
        scheduler=named(site.scheduler),
        layout=_layout(words, words.nodes * ranks_per_node),
        nodes=words.nodes,
        ranks_per_node=ranks_per_node,
        time_s=time_s,
        queue=_queue(words, site, time_s),
        options=_options(words, site),
    )


def _layout(words: JobWords, num_ranks: int) -> Layout:
    if words.plan is not None and words.layout:
        raise SpecError(
            "--plan", f"given beside the layout {words.layout!r}", "a plan holds the layout",
            "leave --layout or --plan out",
        )  # fmt: skip
    text = words.layout or f"data={num_ranks}"
    layout = read_layout(words.plan) if words.plan is not None else Layout.parse(text)
    if layout.num_ranks != num_ranks:
        nodes, left = divmod(layout.num_ranks, num_ranks // words.nodes)
        raise SpecError(
            "layout",
            f"{layout} is for {layout.num_ranks} ranks; {words.nodes} nodes have {num_ranks}",
            "the product of the degrees is the number of ranks: nodes x ranks a node",
            ("use " if left else f"use --nodes {nodes}, or ") + "a layout that fills the nodes: of "
            f"a multiple of {num_ranks // words.nodes} ranks",
        )
    return layout


def _queue(words: JobWords, site: Site, time_s: int) -> str:
    """The queue: the named one, or the first of the site's file; "" is the batch system's usual.

    Another is never taken by itself: it may kill jobs without a warning, or cost more. A queue
    that the file does not have is not checked: a site has more of them than its file.
    """
    queue = words.queue or (site.limits[0].queue if site.limits else "")
    refusal = _of_queue(queue, words, site, time_s)
    if refusal is not None:
        where, found, source = refusal
        others = sorted(
            other
            for other in {limit.queue for limit in site.limits} - {queue, ""}
            if _of_queue(other, words, site, time_s) is None
        )
        raise SpecError(
            where,
            f"{found} ({f'queue {queue} of ' if queue else ''}{site.title})",
            f"a job fits its queue ({source})",
            "ask for another size or time, or another --queue"
            + (f"; this job fits {' or '.join(others)}" if others else ""),
        )
    return queue


def _of_queue(queue: str, words: JobWords, site: Site, time_s: int) -> tuple[str, str, str] | None:
    known = [limit for limit in site.limits if limit.queue == queue]
    return _refusal(known, words.nodes, time_s)


def _refusal(limits: list[Limit], nodes: int, time_s: int) -> tuple[str, str, str] | None:
    """(option, what it asks, source) of the limit that a job breaks, None if it breaks none."""
    fitting = [one for one in limits if one.min_nodes <= nodes <= (one.max_nodes or sys.maxsize)]
    if limits and not fitting:
        smallest = min(one.min_nodes for one in limits)
        largest = max(one.max_nodes or sys.maxsize for one in limits)
        bound = f"{smallest} or more" if nodes < smallest else f"{largest} at most"
        return "--nodes", f"{nodes} nodes, it takes {bound}", limits[0].source
    for one in fitting:
        if one.max_hours is not None and time_s > one.max_hours * 3600:
            asked = f"{time_s / 3600:g} h with --nodes {nodes}"
            return "--time", f"{asked}, it takes {one.max_hours:g} h at most", one.source
    return None


def _options(words: JobWords, site: Site) -> dict[str, str]:
    """The site's own options: given, or their defaults."""
    known = {option.name: option for option in site.options}
    for name in words.options:
        if name not in known:
            raise SpecError(
                f"--option {name}",
                "unknown",
                f"the options of {site.title} are {', '.join(known) or 'none'}",
                nearest(name, known),
            )
    found = {name: option.default for name, option in known.items()} | dict(words.options)
    for name, value in found.items():
        if value is None:
            raise SpecError(
                f"--option {name}",
                "not given",
                f"{site.title} asks for it ({known[name].source})",
                f"add --option {name}=...",
            )
    return {name: str(value) for name, value in found.items()}


def write_script(asked: Asked, folder: Path) -> str:
    """The job script of `asked`, whose files will be kept in `folder`."""
    site, scheduler = asked.site, asked.scheduler
    ask = _ask(asked, folder)
    values = _values(asked, folder)
    has_container = bool(asked.words.container)

    def lines(group: tuple[Line, ...]) -> list[tuple[str, str]]:
        where = f"site.{asked.words.site}"
        found = chosen(group, has_container=has_container)
        return [(fill(line.text, values, where), line.source) for line in found]

    directives = [f"{scheduler.mark} {text}" for text in scheduler.directives(ask)]
    own = ((site.queue,) if site.queue and asked.queue else ()) + site.directives
    directives += [f"{scheduler.mark} {text}" for text, _ in lines(own)]
    parts = [
        ["#!/bin/bash -l", *directives],
        _heading(asked),
        _begin(folder),
        [_commented(*entry) for entry in lines(site.setup)],
        _meeting(asked, values),
        ["saved_before=", "while :; do"],
        _words(asked, folder),
        _start(asked, ask, lines(site.each_rank), values),
        [scheduler.waiting()],
        [LOST_RANKS],
        [
            scheduler.again(),
            f'if [ "$code" -ne 75 ]; then echo "$code" > "$job/{EXIT_CODE}"; fi',
            'exit "$code"',
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _ask(asked: Asked, folder: Path) -> Ask:
    return Ask(
        name=folder.name,
        nodes=asked.nodes,
        ranks_per_node=asked.ranks_per_node,
        time_s=asked.time_s,
        leave_s=min(LEAVE_S, asked.time_s // 4),
        log=str(folder / LOG),
        account=asked.words.account,
        queue="" if asked.site.queue else asked.queue,
    )


def _values(asked: Asked, folder: Path) -> dict[str, object]:
    return {
        "nodes": asked.nodes,
        "ranks": asked.num_ranks,
        "ranks_per_node": asked.ranks_per_node,
        "container": shlex.quote(asked.words.container),
        "folder": shlex.quote(str(folder)),
        "queue": asked.queue,
        **asked.options,
    }


def _heading(asked: Asked) -> list[str]:
    """What the script is, what should be known of the site, and what is not known."""
    site = asked.site
    found = [
        f"# {site.title}: {asked.num_ranks:,} ranks on {asked.nodes:,} nodes, {asked.layout}.",
        "# Written by `armillary submit`; each line of the site's has its source beside it.",
    ]
    found += [f"# Note: {asked.advice}"] if asked.advice else []
    notes = chosen(site.notes, has_container=bool(asked.words.container))
    found += [f"# Note: {line.text}  ({line.source})" for line in notes]
    return found + [f"# Not known, and so left out: {text}" for text in site.unknown]


def _begin(folder: Path) -> list[str]:
    return [
        "umask 077",
        f"job={shlex.quote(str(folder))}",
        f'exec >> "$job/{LOG}" 2>&1',
        f'rm -f "$job/{EXIT_CODE}"',
        f"cd {shlex.quote(os.getcwd())}",
    ]


def _commented(text: str, source: str) -> str:
    return f"{text}  # {source}"


def _meeting(asked: Asked, values: dict[str, object]) -> list[str]:
    """Where the ranks meet; without an address of the site's, the ranks find it themselves."""
    found = []
    if asked.site.address is not None:
        address = asked.site.address
        text = fill(address.text, values, "site.address")
        found.append(_commented(f"export MASTER_ADDR={text}", address.source))
    if asked.site.port is not None:
        port = asked.site.port
        found.append(_commented(f"export MASTER_PORT={port.value}", port.source))
    return found


def _words(asked: Asked, folder: Path) -> list[str]:
    """The words of `armillary train`: a new run, or the job's run where it was interrupted."""
    words = asked.words
    layout = ["--plan", str(folder / PLAN)] if words.plan else ["--layout", str(asked.layout)]
    new = shlex.join(["train", words.recipe, *layout, *words.always, *words.train, "--runs"])
    again = shlex.join(["--layout", str(asked.layout), *words.always])
    return [
        "# A script that is run again goes on with the job's run, if that has saved anything.",
        'words=("$job"/runs/*/checkpoints/step-*)',
        'if [ -e "${words[0]}" ]; then',
        "  saved=${words[-1]%/checkpoints/*}",
        f'  words=(train --resume "$saved" {again})',
        "else",
        f'  words=({new} "$job/runs")',
        "fi",
    ]


def _start(
    asked: Asked, ask: Ask, each_rank: list[tuple[str, str]], values: dict[str, object]
) -> list[str]:
    """The line that starts the ranks, and what every rank does before it becomes Armillary."""
    start = fill(asked.site.start.text, values, "site.start")
    container = asked.site.container
    if asked.words.container and container is None:
        raise SpecError(
            "--container",
            repr(asked.words.container),
            f"how {asked.site.title} starts one is not in the site's file",
            "leave it out, or write a site file of your own",
        )
    if asked.words.container and container is not None:
        start += " " + fill(container.text, values, "site.container")
    found = [f"# {asked.site.start.source}"]
    if asked.words.container and container is not None:
        found.append(f"# {container.source}")
    found += [f"# {source}" for _, source in each_rank]
    # This Python by its path: in front of PATH, an MPI beside it would hide the site's mpiexec.
    python = f"{shlex.quote(sys.executable)} -m armillary.cli"
    program = "armillary" if asked.words.container else python
    command = f'{asked.scheduler.rank_prefix(ask)}{program} "${{words[@]}}"'
    if each_rank:
        shell = "; ".join([*(text for text, _ in each_rank), 'exec "$@"'])
        command = f"bash -c '{shell}' rank {command}"
    return [*found, f"{start} {command} &", "ranks=$!"]
