"""Convolutional, recurrent and other networks, priced with numbers that their source did not give.

    python -m benchmarks.calibration.others

The numbers of their programs (`plan/software/conv-*.toml`) were fitted by hand, nearly every one to
a single source. So a source is left out by giving its programs the mean of what was fitted to the
others': what only its own program has is left at nothing. What all programs share, such as the gain
of Winograd's convolutions, was found with all sources in view and stays.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from armillary.plan.price import price
from armillary.plan.published import Subject, subject
from armillary.plan.runs import read_runs
from armillary.plan.software import Software, load
from armillary.plan.validate import Errors
from armillary.spec import SpecError

DATA = Path(__file__).parents[1] / "data" / "published_runs.csv"
KINDS = ("cnn", "rnn", "other", "")
FITTED = ("stream_passes", "launch_s", "kernel_fraction")
"""Of these the geometric mean of the other programs is taken."""
OF_ONE = ("cast_kernels", "optimizer_kernels", "agreement_s", "spread_of_lengths")
"""These were fitted to one program each, and are 0 of the others."""


def main() -> None:
    """Print the errors of each source as it was fitted, and left out."""
    subjects = _subjects()
    own, other = errors(subjects, {}), errors(subjects, left_out_programs(subjects))
    sources = [one.run.source_group for one in subjects]
    print(f"{'':22}  rows   fitted: median    p90    left out: median    p90    bias")
    for name in (*sorted(set(sources)), ""):
        rows = [i for i, source in enumerate(sources) if name in (source, "")]
        each = [1.0 / sources.count(sources[i]) for i in rows]
        fitted, found = (Errors.of([e[i] for i in rows], each) for e in (own, other))
        print(
            f"{name or 'all, weighted the same':22}  {len(rows):4d}  {fitted.median:14.1%}  "
            f"{fitted.ninetieth:6.1%}  {found.median:16.1%}  {found.ninetieth:6.1%}  "
            f"{found.bias:+6.1%}"
        )


def quoted() -> dict[str, float]:
    """Median and nine in ten of the errors when each source is left out, all weighted the same."""
    subjects = _subjects()
    number = Counter(one.run.source_group for one in subjects)
    found = errors(subjects, left_out_programs(subjects))
    total = Errors.of(found, [1.0 / number[one.run.source_group] for one in subjects])
    return {
        "convolutional and others, median": total.median,
        "convolutional and others, nine in ten": total.ninetieth,
    }


def errors(
    subjects: Iterable[Subject], programs: Mapping[tuple[str, str], Software]
) -> list[float]:
    """Ours / theirs - 1 of each, with the program that stands for its own by source, if any."""
    found = []
    for one in subjects:
        software, program = one.software, programs.get((one.run.source_group, one.software.name))
        if program:
            software = replace(software, **{f: getattr(program, f) for f in (*FITTED, *OF_ONE)})
            software = replace(software, spread=program.spread)
        priced = price(
            one.graph, one.machine, software, one.grid, global_batch_size=one.global_batch_size
        )
        found.append(float(priced.step_s.ravel()[0]) / one.run.step_s - 1.0)
    return found


def left_out_programs(subjects: Sequence[Subject]) -> dict[tuple[str, str], Software]:
    """By source and program what stands for it when that source is left out."""
    of_source: dict[str, set[str]] = {}
    for one in subjects:
        of_source.setdefault(one.run.source_group, set()).add(one.software.name)
    everyone = {name for names in of_source.values() for name in names}
    found = {}
    for source, names in of_source.items():
        others = [load(name) for name in sorted(everyone - names)]
        mean = {f: float(np.exp(np.mean([np.log(getattr(o, f)) for o in others]))) for f in FITTED}
        for name in names:
            found[source, name] = replace(load(name), **mean, **dict.fromkeys(OF_ONE, 0.0))
    return found


def _subjects() -> list[Subject]:
    found = []
    for run in read_runs(DATA)[0]:
        if run.quality == "A" and run.step_s and run.kind in KINDS:
            try:
                found.append(subject(run))
            except (SpecError, ValueError):
                continue  # no stored graph of it, or a cut that we have not
    return found


if __name__ == "__main__":
    main()
