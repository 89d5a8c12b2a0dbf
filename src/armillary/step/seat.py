"""Where a process joins the process group: who it is, and where the ranks meet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A rank's seat: its local rank, and how it joins.

    `meeting` is the URL of rank 0's store, "tcp://node:port"; None where torch's own variables
    (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) tell all that, and then the other two are too. A
    `store` is one that the ranks have met at already.
    """

    local_rank: int = 0
    rank: int | None = None
    world_size: int | None = None
    meeting: str | None = None
    store: "Store | None" = None

    @classmethod
    def of_torch(cls, variables: Mapping[str, str]) -> "Seat":
        """The seat that torch's own variables tell of."""
        return cls(local_rank=int(variables.get("LOCAL_RANK", "0")))
