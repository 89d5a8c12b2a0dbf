"""In which order samples come: a pure function of seed, epoch and position.

Nothing is stored and nothing is drawn, so any rank of any world knows which sample stands at any
position, and a run resumed at another world size goes on exactly where it stopped.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


def mix(*words: int) -> int:
    """A hash in [0, 2^63) of some integers, for use as a seed.

    Source: the splitmix64 finaliser, Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators", OOPSLA, figure 16 (constants of Stafford's variant 13).
    """
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOrder:
    """A permutation of `num_samples` for every epoch, computed position by position.

    A Feistel network permutes the next power of four, and positions that fall outside are walked
    on until they fall inside; memory and time are those of the positions asked for, not of the
    data set.

    Source: Luby and Rackoff 1988, SIAM J. Comput. 17(2); cycle walking, Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains", CT-RSA.
    """

    num_samples: int
    seed: int = 0
    shuffle: bool = True

    def at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample indices at `positions` of `epoch`, shape as `positions`."""
        assert positions.size == 0 or 0 <= positions.min() <= positions.max() < self.num_samples
        if not self.shuffle:
            return positions.astype(np.int64)
        half_bits = max(4, (int(self.num_samples - 1).bit_length() + 1) // 2)
        keys = [np.uint64(mix(self.seed, epoch, i)) for i in range(NUM_ROUNDS)]
        walked = _feistel(positions.astype(np.uint64), half_bits, keys)
        outside = walked >= self.num_samples
        while outside.any():
            walked[outside] = _feistel(walked[outside], half_bits, keys)
            outside = walked >= self.num_samples
        return walked.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of [0, 4^half_bits) applied to `values`."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_hash(right, key) & mask)
    return (left << bits) | right


def _hash(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """The splitmix64 finaliser of `values` added to `key`; products wrap around by design."""
    state = values * np.uint64(0x9E3779B97F4A7C15) + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
