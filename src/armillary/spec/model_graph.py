"""A model as numbers: what its parameters weigh and which of its blocks repeat."""

from dataclasses import dataclass
from typing import ClassVar

from armillary.spec.document import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class Block(Document):
    """One block that is gathered, saved or recomputed as a whole: its module path and weight."""

    what: ClassVar[str] = "block"

    path: str
    num_parameters: int
    parameter_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGraph(Document):
    """A model as its repeated blocks and the rest; bytes are of the parameters as stored.

    `blocks` are disjoint; `num_parameters` and `parameter_bytes` are of the whole model, each
    shared parameter counted once.
    """

    what: ClassVar[str] = "model graph"

    name: str
    num_parameters: int
    parameter_bytes: int
    blocks: tuple[Block, ...] = ()
    has_batch_norm: bool = False

    @property
    def rest_bytes(self) -> int:
        """Bytes of the parameters outside the repeated blocks."""
        return self.parameter_bytes - sum(block.parameter_bytes for block in self.blocks)

    @property
    def unit_bytes(self) -> dict[str, int]:
        """Bytes of what is gathered as a whole, by path: every block, and the rest under ""."""
        units = {block.path: block.parameter_bytes for block in self.blocks}
        return units | ({"": self.rest_bytes} if self.rest_bytes else {})
