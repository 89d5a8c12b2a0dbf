"""A tree of switches with as many links up as down, or fewer by the taper."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import at_link_rate, in_one_hop
from armillary.networks.joint import Index, Joint, Trips, Ways

Array = NDArray[np.float64]


class FatTree:
    """Any pattern at the link's rate over the taper.

    A level above a pod carries the pod's taper, so its ranks get `link_bytes_per_s` / `taper` when
    all send upwards at once. Rail-optimised trees have a level whose unit is the pod of a rail.
    """

    name = "fat_tree"
    # 24 of 25 GB/s and 46 to 48 of 50 by those who write NCCL: github.com/NVIDIA/nccl-tests,
    # issues 160, 290 and 252. Pieces: 2 H100 on 2 nodes, 2 to 32 MiB, issue 232 (docs/networks.md).
    fraction = 0.96
    source = "nccl-tests issues 160, 290, 252 (InfiniBand, 200 and 400 Gbit/s)"
    step_factor = 1.0
    pieces = 0.2
    through_adapters = True
    is_spread = False

    bytes_per_s = at_link_rate
    num_hops = in_one_hop

    def capacities(self, joint: Joint) -> Array:
        # Up and down of each unit below: as many links as its ranks have, over the taper.
        return np.full(2 * joint.num_units, joint.rank_bytes_per_s * joint.unit_ranks)

    def ends(self, joint: Joint) -> Index:
        units, top = np.arange(joint.num_units), np.full(joint.num_units, joint.num_units)
        return np.concatenate([np.stack([units, top], 1), np.stack([top, units], 1)])

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        every = np.arange(trips.source.size)
        return Ways(
            trip=np.concatenate([every, every]),
            link=np.concatenate([trips.source, joint.num_units + trips.target]),
            share=np.ones(2 * every.size),
        )

    def border(self, joint: Joint, source: Index, is_outward: bool) -> Index:
        return source if is_outward else joint.num_units + source


NETWORK = FatTree()
