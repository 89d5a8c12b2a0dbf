"""How a training program lies on devices: the degree of every axis, and how a step is cut."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import ClassVar, Self

from armillary.spec.document import Document, nearest
from armillary.spec.error import SpecError
from armillary.spec.words import parse_assignments, parse_value

PRECISIONS = ("float32", "bfloat16", "float16", "float64")
MAPPINGS = ("degrees", "options")
RECOMPUTES = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout(Document):
    """The degree of every axis and its options, the micro batch, precision, recompute, compile.

    `degrees` holds the axes in mesh order, outermost first; an axis that is absent has degree 1.
    `options` holds what an axis may be told besides, by its name and the option's with a dot
    between, such as `pipeline.schedule`; which there are is for `axes` to say.
    `micro_batch_size` is the most samples one rank sends through the model at once; 0 means all
    that the global batch gives it.

    Example:
        >>> Layout.parse("data=2,sharded=2,precision=bfloat16").num_ranks
        4
    """

    what: ClassVar[str] = "layout"

    degrees: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    micro_batch_size: int = 0
    precision: str = "float32"
    recompute: str = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        for axis, degree in self.degrees.items():
            if degree < 1:
                raise SpecError(
                    f"layout.{axis}",
                    f"degree {degree}",
                    "a degree is the number of ranks along an axis, at least 1",
                    f"use {axis}=1, or leave {axis} out",
                )
        if self.micro_batch_size < 0:
            raise SpecError(
                "layout.micro_batch_size",
                f"{self.micro_batch_size}",
                "a micro batch has at least one sample; 0 means as many as fit",
                "use 0, or a positive number of samples",
            )
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("recompute", self.recompute, RECOMPUTES)

    @property
    def num_ranks(self) -> int:
        """The number of ranks: the product of the degrees."""
        return prod(self.degrees.values())

    def degree(self, axis: str) -> int:
        """The degree of `axis`, 1 if the layout does not name it."""
        return self.degrees.get(axis, 1)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The layout in words, such as `data=2,pipeline=2,pipeline.schedule=gpipe`.

        A word with a dot is an option of an axis, a word that is no setting of a layout an axis;
        whether there are such is for `axes` to say.
        """
        words = parse_assignments([word for word in text.split(",") if word.strip()], "layout")
        settings = {f.name: f.default for f in fields(cls) if f.name not in MAPPINGS}
        degrees = {}
        options = {}
        values = {}
        for name, value in words.items():
            if "." in name:
                options[name] = value
            elif name in settings:
                values[name] = parse_value(value, settings[name], f"layout.{name}")
            else:
                degrees[name] = parse_value(value, 1, f"layout.{name}")
        return cls(degrees=degrees, options=options, **values)

    def __str__(self) -> str:
        axes = [f"{axis}={degree}" for axis, degree in self.degrees.items() if degree > 1]
        axes += [f"{name}={value}" for name, value in self.options.items()]
        extras = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in MAPPINGS and getattr(self, f.name) != f.default
        ]
        return ",".join(axes + extras) or "serial"


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(
            f"layout.{name}",
            repr(value),
            f"{name} is one of {', '.join(choices)}",
            nearest(value, choices),
        )
