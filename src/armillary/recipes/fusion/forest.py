"""A forest of extremely randomised trees as a torch module, row by row of a shot.

Trees recall single shots where a network smooths over them; joined, the two tell how a shot ends
better than either does on the random split (`benchmarks/results/fusion.md`). The trees are grown
by scikit-learn on the training rows when the model is made, and then live in buffers, so that a
checkpoint carries them and scoring needs torch alone. Nothing of them is trained by gradient.

Source: Geurts, Ernst & Wehenkel 2006, "Extremely randomized trees", Machine Learning 63, 3-42.

Letters of shapes: B shots, T rows, F features, N rows of all shots, R trees, M nodes of a tree.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from armillary.spec import SpecError

NUM_TREES = 100
MAX_LEAVES = 512
NUM_NODES = 2 * MAX_LEAVES - 1
FEATURE_SHARE = 0.4
MISSING = -9.0
"""Stands for a value not yet measured; below every physical one."""
SUREST = 1e-3
RECENT_ROWS = 8


class Forest(nn.Module):
    """Logit (B, T) of what the trees were grown to tell, from features (B, T, F) until that row.

    A row is seen with each feature's means of the rows before it (`with_history`). A forest that
    was not grown gives 0 until a checkpoint fills it.
    """

    def __init__(self, num_trees: int = NUM_TREES, num_nodes: int = NUM_NODES) -> None:
        super().__init__()
        self.feature: torch.Tensor
        self.threshold: torch.Tensor
        self.child: torch.Tensor
        self.value: torch.Tensor
        self.depth: torch.Tensor
        self.register_buffer("feature", torch.zeros(num_trees, num_nodes, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(num_trees, num_nodes))
        self.register_buffer("child", torch.zeros(num_trees, num_nodes, 2, dtype=torch.int64))
        self.register_buffer("value", torch.full((num_trees, num_nodes), 0.5))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int64))

    def grow(self, inputs_NI: NDArray[np.floating], target_N: NDArray[np.bool_], seed: int) -> None:
        """Grow the trees on rows as `with_history` gives them, and what is true of them."""
        try:
            from sklearn.ensemble import ExtraTreesClassifier
        except ImportError:
            raise SpecError(
                "fusion.kinds",
                "a forest needs the package scikit-learn, which is not installed",
                "trees are grown by scikit-learn; scoring needs torch alone",
                "pip install 'armillary[fusion]', or leave forest out of kinds",
            ) from None
        trees = ExtraTreesClassifier(
            len(self.feature),
            max_leaf_nodes=(self.feature.shape[1] + 1) // 2,
            max_features=FEATURE_SHARE,
            random_state=seed,
        ).fit(inputs_NI, target_N)
        for i, grown in enumerate(trees.estimators_):
            tree = grown.tree_
            is_leaf = tree.children_left < 0
            itself = np.arange(tree.node_count)
            children = np.stack([tree.children_left, tree.children_right], axis=1)
            children = np.where(is_leaf[:, None], itself[:, None], children)
            share = tree.value[:, 0, :]
            chance = share[:, 1] / share.sum(1)
            for buffer, values in (
                (self.feature, np.where(is_leaf, 0, tree.feature)),
                (self.threshold, tree.threshold),
                (self.child, children),
                (self.value, chance),
            ):
                buffer[i, : tree.node_count] = torch.as_tensor(values).to(buffer.dtype)
        self.depth.fill_(max(grown.tree_.max_depth for grown in trees.estimators_))

    @torch.no_grad()
    def forward(self, features_BTF: torch.Tensor) -> torch.Tensor:
        inputs_BTI = with_history(features_BTF)
        inputs_NI = inputs_BTI.flatten(0, 1)
        tree_R = torch.arange(len(self.feature), device=inputs_NI.device)
        node_NR = torch.zeros(
            len(inputs_NI), len(tree_R), dtype=torch.int64, device=inputs_NI.device
        )
        for _ in range(int(self.depth)):
            seen_NR = inputs_NI.gather(1, self.feature[tree_R, node_NR])
            right_NR = (seen_NR > self.threshold[tree_R, node_NR]).long()
            node_NR = self.child[tree_R, node_NR, right_NR]
        chance_N = self.value[tree_R, node_NR].mean(1).clamp(SUREST, 1 - SUREST)
        logit: torch.Tensor = torch.logit(chance_N).view(features_BTF.shape[:2])
        return logit


def with_history(features_BTF: torch.Tensor) -> torch.Tensor:
    """Features, their means since the shot began and over about 40 ms (B, T, 3 F).

    What is missing counts as 0 in a mean, and stands as `MISSING` beside it.
    """
    known = features_BTF.nan_to_num(0.0)
    count = torch.arange(1, known.shape[1] + 1, device=known.device, dtype=known.dtype)
    since_start = known.cumsum(1) / count[:, None]
    share, recent = 1 - math.exp(-1 / RECENT_ROWS), [known[:, 0]]
    for row in known[:, 1:].unbind(1):
        recent.append(recent[-1] + share * (row - recent[-1]))
    latest = features_BTF.nan_to_num(MISSING)
    return torch.cat([latest, since_start, torch.stack(recent, 1)], dim=-1)
