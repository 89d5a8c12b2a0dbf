"""Published models that no family describes, as stored graphs: read without torch.

`load("resnet50")` is the graph of a model at its published size and input; `names()` lists them.
`for_row` finds the one that a row of published runs names. They were traced from modules written
after their papers (benchmarks/reference_models) by benchmarks/trace_references.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

from armillary.spec import ModelGraph, SpecError, nearest
from armillary.spec.document import Document

__all__ = ["Reference", "find", "for_row", "load", "names", "read"]
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference(Document):
    """A stored graph and where it is from.

    `source` is the paper and table of the architecture, `input` what one sample is and where that
    is stated, `figures` where the published numbers of parameters and flops are from (0 where
    none is printed). `units` says how many of what a source counts there are in a sample, such as
    tokens; `varies` that samples are of unlike lengths, and `traced` how the graph was made.
    """

    what: ClassVar[str] = "reference model"

    name: str
    source: str
    input: str
    graph: ModelGraph
    figures: str = ""
    published_parameters: float = 0.0
    published_flops: float = 0.0
    tolerance: float = 0.01
    units: Mapping[str, float] = field(default_factory=dict)
    varies: bool = False
    traced: str = ""


PATTERNS = (
    *((r"wide ?resnet ?101|wresnet.*\b13b|wide.*\b13b", "wide-resnet101-c320-w16"),),
    *((rf"wide.*\bc{base} w2", f"wide-resnet50-c{base}-w2") for base in (160, 224, 320, 448, 640)),
    *((r"wide.*\bc320 w16|wide.*\b6 8b", "wide-resnet50-c320-w16"),),
    *((r"wide.*\b250m", "wide-resnet50-c160-w2"), (r"wide.*\b500m", "wide-resnet50-c224-w2")),
    *((r"wide.*\b1b", "wide-resnet50-c320-w2"), (r"wide.*\b2b", "wide-resnet50-c448-w2")),
    *((r"wide.*\b4b", "wide-resnet50-c640-w2"), (r"retina ?net", "retinanet")),
    *((r"ssd ?300|\bssd\b|single shot", "ssd300"), (r"mask r ?cnn|faster r ?cnn", "")),
    *((r"deep ?cam|deeplab", "deepcam"), (r"cosmo ?flow", "cosmoflow")),
    *((r"u ?net.*kits|kits.*u ?net", "unet3d-kits19"), (r"3d u ?net|u ?net ?3d", "unet3d-brats")),
    *((r"stable diffusion|\bsd ?v?2", "stable-diffusion-v2"), (r"u ?net", "unet-medical")),
    *((r"jasper", "jasper10x5"), (r"tacotron ?2", "tacotron2"), (r"wave ?glow", "waveglow")),
    *((r"gnmt", "gnmt"), (r"transformer xl.*base", "transformer-xl-base")),
    *((r"transformer xl", "transformer-xl-large"), (r"bart", "bart-large")),
    *((r"transformer big|transformer en de", "transformer-big"),),
    *((r"(temporal fusion|tft).*electric", "tft-electricity"),),
    *((r"temporal fusion|\btft\b", "tft-traffic"), (r"dcn ?v?2|dlrm.*dcn", "dlrm-dcnv2")),
    *((r"dlrm", "dlrm"), (r"r ?gat\b", ""), (r"se 3 transformer|\bse3", "se3-qm9")),
    *((r"open ?fold|alpha ?fold ?2", "openfold"), (r"dimenet|open ?catalyst", "")),
    *((r"resnext", ""), (r"resnet ?50|\brn50", "resnet50")),
)
"""What a model is called, in small letters and digits with one space between, and its graph."""

LENGTHS = {"bart-large": {512: "bart-large-512"}}
"""Graphs of other lengths of a sequence than the usual one."""


@cache
def names() -> tuple[str, ...]:
    """The names of the stored graphs, in order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def read(name: str) -> Reference:
    """The stored graph `name` with its sources.

    Raises: `SpecError` on a name that is not among `names()`.
    """
    if name not in names():
        raise SpecError(
            "model",
            f"no stored graph {name!r}",
            "published models are stored under their names (models/references/)",
            nearest(name, names()),
        )
    return Reference.read(FOLDER / f"{name}.json")


def load(name: str) -> ModelGraph:
    """The graph of the published model `name`; see `names`.

    Raises: `SpecError` on a name that is not among `names()`.

    Example:
        >>> load("resnet50").num_parameters
        25557032
    """
    return read(name).graph


def find(model: str, seq_len: int = 0) -> str:
    """The name of the stored graph of what a table of runs calls `model`; "" where none is."""
    words = " ".join(re.findall(r"[a-z0-9]+", model.lower()))
    for pattern, name in PATTERNS:
        if re.search(pattern, words):
            name = LENGTHS.get(name, {}).get(seq_len, name)
            return name if name in names() else ""
    return ""


def for_row(model: str, kind: str = "", seq_len: int = 0) -> ModelGraph | None:
    """The graph of the model that a row of published runs names; None where none is stored.

    `kind` is the row's (cnn, rnn, other, dense-transformer, moe); rows of experts have families.
    """
    name = "" if kind == "moe" else find(model, seq_len)
    return load(name) if name else None
