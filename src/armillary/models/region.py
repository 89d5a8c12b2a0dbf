"""Parameters that are cut together: what a region holds, and what it sends."""

from dataclasses import dataclass, field
from math import gcd

BEGINS = ("column", "head", "vocabulary")


@dataclass(slots=True)
class Use:
    """How a parameter takes part in a region: its kind, the dim that is cut, and what it sends.

    `sent` and `exchanged` are the bytes of what crosses the region's edge or is exchanged in it,
    one entry a call; `num_tokens` the tokens of a sample at the edge, 0 where it has no such dim.
    """

    kind: str
    dim: int
    sent: list[int] = field(default_factory=list)
    exchanged: list[int] = field(default_factory=list)
    num_pieces: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class Region:
    """Parameters that are cut together, by common units; `fault` says why they cannot be.

    `has_end`: a linear map takes what is cut; `is_head`: the model puts it out. `shares`: the
    parameter is that of another region. `is_taken_apart`: what holds no units was cut.
    """

    uses: dict[str, Use] = field(default_factory=dict)
    units: list[tuple[int, str]] = field(default_factory=list)
    entered: set[int] = field(default_factory=set)
    block: str = ""
    fault: str = ""
    has_end: bool = False
    is_head: bool = False
    shares: bool = False
    is_taken_apart: bool = False

    @property
    def num_units(self) -> int:
        """The number of units, which a degree must divide."""
        return gcd(*(number for number, _ in self.units))

    @property
    def unit(self) -> str:
        """What the units are."""
        number = self.num_units
        return next((name for size, name in reversed(self.units) if size == number), "common units")

    def take(self, other: "Region") -> None:
        """Join with another region."""
        self.uses |= other.uses
        self.units += other.units
        self.entered |= other.entered
        self.has_end |= other.has_end
        self.is_head |= other.is_head


@dataclass(slots=True)
class Hints:
    """What earlier passes taught: parameters that begin no region, with the reasons, and those
    whose output holds pieces one after the other.
    """

    refused: dict[str, str] = field(default_factory=dict)
    in_pieces: set[str] = field(default_factory=set)

    def learn(self, regions: list[Region]) -> None:
        """Note the faults of `regions`; what was taken apart is tried once more in pieces."""
        for region in regions:
            if not region.fault:
                continue
            begins = {p for p, u in region.uses.items() if u.kind in BEGINS}
            if region.is_taken_apart and not begins & self.in_pieces:
                self.in_pieces |= begins
            else:
                self.refused |= dict.fromkeys(begins, region.fault)
