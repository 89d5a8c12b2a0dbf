"""A forest of extremely randomised trees as a torch module, row by row of a shot.

Trees recall single shots where a network smooths over them; joined, the two tell how a shot ends
better than either does on the random split (`benchmarks/results/fusion.md`). The trees are grown
by scikit-learn on the training rows when the model is made, and then live in buffers, so that a
checkpoint carries them and scoring needs torch alone. Nothing of them is trained by gradient.

Source: Geurts, Ernst & Wehenkel 2006, "Extremely randomized trees", Machine Learning 63, 3-42.

Letters of shapes: B shots, T rows, F features, N rows of all shots, R trees.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from armillary.spec import SpecError

NUM_TREES = 100
MAX_LEAVES = 256
NUM_NODES = 2 * MAX_LEAVES - 1
FEATURE_SHARE = 0.4
MISSING = -9.0
"""Stands for a value not yet measured; only the steepest changes of q95 lie below it."""
SUREST = 1e-3


class Forest(nn.Module):
    """Logit (B, T) of what the trees were grown to tell, from the features (B, T, F) of that row.

    A forest that was not grown gives 0 until a checkpoint fills it.
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

    def grow(
        self, features_NF: NDArray[np.floating], target_N: NDArray[np.bool_], seed: int
    ) -> None:
        """Grow the trees on rows of features, and what is true of them."""
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
        ).fit(np.nan_to_num(features_NF, nan=MISSING), target_N)
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
        rows_NF = features_BTF.nan_to_num(MISSING).flatten(0, 1)
        tree_R = torch.arange(len(self.feature), device=rows_NF.device)
        shape = (len(rows_NF), len(tree_R))
        node_NR = torch.zeros(shape, dtype=torch.int64, device=rows_NF.device)
        for _ in range(int(self.depth)):
            seen_NR = rows_NF.gather(1, self.feature[tree_R, node_NR])
            right_NR = (seen_NR > self.threshold[tree_R, node_NR]).long()
            node_NR = self.child[tree_R, node_NR, right_NR]
        chance_N = self.value[tree_R, node_NR].mean(1).clamp(SUREST, 1 - SUREST)
        logit: torch.Tensor = torch.logit(chance_N).view(features_BTF.shape[:2])
        return logit
