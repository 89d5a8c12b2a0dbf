"""A grid of ranks, each linked to its two neighbours along every dim, closed to rings."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import Pattern, by_no_border
from armillary.networks.joint import Index, Joint, Trips, Ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Torus:
    """Neighbours use all links; traffic to everyone is held by the cut through the middle.

    `link_bytes_per_s` is the rate of a rank's links together, two along each of
    `shape.num_dims` dims (3 where it is not given). A group is taken to be a compact block with
    equal sides; where it is the whole torus, its rings are closed.
    """

    name = "torus"
    fraction = 0.96
    source = "as a ring between nodes (networks/fat_tree.py); not measured on a torus"
    step_factor = 1.0
    pieces = 0.2
    through_adapters = True
    is_spread = False

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        link = level.link_bytes_per_s / level.taper
        dims = level.shape.get("num_dims", 3.0)
        if pattern == "pair":
            return np.full_like(num_units, link / (2.0 * dims))
        if pattern == "ring":
            return np.full_like(num_units, link)
        # A message goes side / 4 links along each of the dims, of which each link carries one.
        return link / np.maximum(self._mean_distance(num_units, dims), 1.0)

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        if pattern in ("ring", "pair"):
            return np.ones_like(num_units)
        return np.maximum(self._mean_distance(num_units, level.shape.get("num_dims", 3.0)), 1.0)

    def _mean_distance(self, num_units: Array, dims: float) -> Array:
        return np.asarray(dims * num_units ** (1.0 / dims) / 4.0)

    def capacities(self, joint: Joint) -> Array:
        # Two of each rank and dim, forth and back: [dim, direction, unit].
        sides = self.sides(joint)
        return np.full(
            2 * sides.size * joint.num_units,
            joint.rank_bytes_per_s * joint.unit_ranks / (2.0 * self._num_dims(joint.level)),
        )

    def ends(self, joint: Joint) -> Index:
        units, stride = np.arange(joint.num_units), 1
        found = []
        for side in self.sides(joint).tolist():
            here = units // stride % side
            for sign in (1, -1):
                other = units + ((here + sign) % side - here) * stride
                found.append(np.stack([units, other], 1))
            stride *= side
        return np.concatenate(found)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        is_ring = trips.are("ring")
        rings, others = np.flatnonzero(is_ring), np.flatnonzero(~is_ring)
        found = [self._along_all(joint, trips.source[rings])]
        found.append(self._dim_by_dim(joint, trips.source[others], trips.target[others]))
        return Ways(
            trip=np.concatenate([rings[found[0].trip], others[found[1].trip]]),
            link=np.concatenate([one.link for one in found]),
            share=np.concatenate([one.share for one in found]),
        )

    def sides(self, joint: Joint) -> Index:
        """The units along each dim: as near to a cube as whole numbers of the units allow."""
        left, sides = joint.num_units, []
        for dims in range(int(self._num_dims(joint.level)), 0, -1):
            near = max(round(left ** (1.0 / dims)), 1)
            side = next(one for one in range(near, 0, -1) if left % one == 0)
            sides.append(left if dims == 1 else side)
            left //= side
        return np.array(sides)

    def _num_dims(self, level: Level) -> float:
        return level.shape.get("num_dims", 3.0)

    def _along_all(self, joint: Joint, source: Index) -> Ways:
        """Rings of a collective run along all dims, both ways: a part on each link of the rank."""
        num = 2 * self.sides(joint).size
        every = np.repeat(np.arange(source.size), num)
        link = np.arange(num)[None, :] * joint.num_units + source[:, None]
        return Ways(trip=every, link=link.reshape(-1), share=np.full(every.size, 1.0 / num))

    def _dim_by_dim(self, joint: Joint, source: Index, target: Index) -> Ways:
        """Along one dim after the other, the shorter way round; half way round, half on each."""
        stride, at = 1, source
        found = []
        for dim, side in enumerate(self.sides(joint).tolist()):
            here = at // stride % side
            far = (target // stride % side - here) % side
            share = np.where(far * 2 == side, 0.5, 1.0)
            for direction, steps in enumerate((far, side - far)):
                steps = np.where((far > 0) & (2 * steps <= side), steps, 0)
                trip = np.repeat(np.arange(at.size), steps)
                nth = np.arange(trip.size) - np.repeat(np.cumsum(steps) - steps, steps)
                place = (here[trip] + (nth if direction == 0 else -nth)) % side
                unit = at[trip] + (place - here[trip]) * stride
                link = (2 * dim + direction) * joint.num_units + unit
                found.append((trip, link, share[trip]))
            at = at + (target // stride % side - here) * stride
            stride *= side
        trip, link, part = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Ways(trip=trip, link=link, share=part)

    border = by_no_border


NETWORK = Torus()
