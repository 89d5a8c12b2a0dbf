"""Frozen documents, words and errors: the ground floor, which imports no other room."""

from armillary.spec.document import Document, nearest, write_atomically
from armillary.spec.error import SpecError
from armillary.spec.layout import Layout
from armillary.spec.manifest import Manifest
from armillary.spec.model_graph import (
    Attention,
    Block,
    Glue,
    ModelGraph,
    Positions,
    Routed,
    Split,
    Stencil,
)
from armillary.spec.settings import TrainSettings

__all__ = [
    "Attention",
    "Block",
    "Document",
    "Glue",
    "Layout",
    "Manifest",
    "ModelGraph",
    "Positions",
    "Routed",
    "SpecError",
    "Split",
    "Stencil",
    "TrainSettings",
    "nearest",
    "write_atomically",
]
