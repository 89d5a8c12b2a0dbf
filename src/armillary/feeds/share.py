"""Which samples of a step one rank computes: no sample left out, none computed twice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The part of every step that falls to coordinate `index` of `count` along the batch.

    `micro_batch_size` is the most samples a rank takes at once; 0 means its whole part.
    """

    index: int = 0
    count: int = 1
    micro_batch_size: int = 0

    def micro_batches(self, start: int, stop: int) -> list[NDArray[np.int64]]:
        """The positions in [start, stop) that this share computes, one array a micro batch.

        Shares differ by one sample at most, and all have the same number of micro batches, so that
        their collectives match: a micro batch that finds no sample left is empty.
        """
        num_samples = stop - start
        first = start + num_samples * self.index // self.count
        last = start + num_samples * (self.index + 1) // self.count
        largest = -(-num_samples // self.count)
        size = self.micro_batch_size or max(largest, 1)
        return [
            np.arange(min(first + i, last), min(first + i + size, last), dtype=np.int64)
            for i in range(0, largest, size)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedState:
    """Where a feed stands: a few integers and the hash of the data they count.

    `position` is the number of samples of `epoch` that have been trained on, over all ranks.
    """

    epoch: int = 0
    position: int = 0
    seed: int = 0
    fingerprint: str = ""
