"""Seconds of every measured row as a function of the constants, and how they change with them."""

# Shapes: N rows, C constants
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import armillary.plan.price as pricing
from armillary.plan.calibration import FACTORS
from armillary.plan.grid import DIMS
from armillary.plan.price import price
from armillary.plan.published import Subject
from benchmarks.calibration.constants import Free

Array = NDArray[np.float64]
STEP = 0.1
"""Of a constant's spread, by which it is moved to see what changes."""


class Messages:
    """What messages cost does not depend on the constants, so each row's are priced once."""

    def __init__(self) -> None:
        self._price = pricing.price_messages
        self._found: dict[Any, Any] = {}
        self.row: Any = None

    def __call__(self, graph: Any, learnt: Any, software: Any, grid: Any, *rest: Any) -> Any:
        """As `plan.messages.price_messages`."""
        key = (self.row, len(grid.precisions))
        if key not in self._found:
            self._found[key] = self._price(graph, learnt, software, grid, *rest)
        return self._found[key]


@dataclass(frozen=True)
class Problem:
    """The rows, the constants and, by row, the indices of those that it depends on."""

    subjects: Sequence[Subject]
    constants: Sequence[Free]
    affects: Sequence[Sequence[int]]
    messages: Messages

    @classmethod
    def of(cls, subjects: Sequence[Subject], constants: Sequence[Free]) -> "Problem":
        """The problem of these rows; from here on messages are kept."""
        affects = [
            [
                index
                for index, constant in enumerate(constants)
                if constant.serves(subject.software.name, subject.machine.device.name)
            ]
            for subject in subjects
        ]
        messages = Messages()
        pricing.price_messages = messages
        return cls(subjects, constants, affects, messages)

    @property
    def measured_s(self) -> Array:
        """Theirs, of shape [N]."""
        return np.array([s.run.step_s for s in self.subjects])

    @property
    def sources(self) -> NDArray[np.str_]:
        """The source of each row, of shape [N]."""
        return np.array([s.run.source_group for s in self.subjects])

    def seconds(self, row: int, values: Sequence[Array]) -> Array:
        """Ours of one row, for each of several vectors of constants; nan where it has no price.

        They are priced at once, as so many precisions of one grid.
        """
        subject = self.subjects[row]
        shape = [1] * len(DIMS)
        shape[DIMS.index("precision")] = len(values)
        fields: dict[str, Any] = {}
        for index in self.affects[row]:
            constant = self.constants[index]
            column = np.array([v[index] for v in values]).reshape(shape)
            if constant.field in FACTORS:
                before = fields.get(constant.field, getattr(subject.software, constant.field))
                column = before * column
            fields[constant.field] = column
        grid = replace(subject.grid, precisions=subject.grid.precisions * len(values))
        self.messages.row = row
        priced = price(
            subject.graph,
            subject.machine,
            replace(subject.software, **fields),
            grid,
            global_batch_size=subject.global_batch_size,
        )
        found = priced.step_s.reshape(-1)
        return np.where(np.isfinite(found), found, np.nan)

    def all_seconds(self, values: Array) -> Array:
        """Ours of every row, of shape [N]."""
        return np.array([self.seconds(row, [values])[0] for row in range(len(self.subjects))])

    def slopes(self, values: Array) -> tuple[Array, Array]:
        """log(ours / theirs), of shape [N], and its slopes by the constants' spreads, [N, C]."""
        spreads = np.array([c.spread for c in self.constants])
        errors = np.zeros(len(self.subjects))
        slopes = np.zeros((len(self.subjects), len(self.constants)))
        measured = np.log(self.measured_s)
        for row, affects in enumerate(self.affects):
            moved = []
            for index in affects:
                one = values.copy()
                one[index] *= np.exp(STEP * spreads[index])
                moved.append(one)
            logs = np.log(self.seconds(row, [values, *moved]))
            if np.isfinite(logs).all():
                errors[row] = logs[0] - measured[row]
                slopes[row, affects] = (logs[1:] - logs[0]) / STEP
        return errors, slopes
