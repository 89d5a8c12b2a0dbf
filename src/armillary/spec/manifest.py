"""What a run was: enough to repeat it, and to say what it ran on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from armillary.spec.document import Document
from armillary.spec.layout import Layout
from armillary.spec.settings import TrainSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest(Document):
    """The recipe, options, layout, settings, data, versions, source state and hardware of a run.

    `recipe` is the word or path that named the recipe, `recipe_sha256` the hash of its source,
    `data_fingerprint` one hash a split, `monitor` what chose the best checkpoint.
    """

    what: ClassVar[str] = "manifest"

    recipe: str
    recipe_sha256: str
    created_utc: str
    layout: Layout
    settings: TrainSettings
    options: Mapping[str, Any] = field(default_factory=dict)
    monitor: str = "min:loss"
    num_samples: Mapping[str, int] = field(default_factory=dict)
    data_fingerprint: Mapping[str, str] = field(default_factory=dict)
    num_parameters: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
