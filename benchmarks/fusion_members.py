"""Do more members tell the endings better, or ranks instead of logits? On shots below 24000 alone.

    python -m benchmarks.fusion_members --data TABLE [--seeds 0 1]

Each inner fold of `fusion_study` is learned by sixteen members in one go; what fewer would have
said is a mean over draws of them. Printed: shot and slice AUC, means over the four folds.

Letters of shapes: K members, B shots, T rows, O outputs.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from armillary.recipes import fusion
from armillary.recipes.fusion import alarms, splits
from armillary.recipes.fusion.network import forest_logit, held_low, score_logit
from armillary.recipes.fusion.signals import read_machine
from benchmarks.fusion_study import CHOSEN, Pairs, fit, inner_splits

MEMBERS, NUM_DRAWS = 16, 12
COUNTS = (1, 2, 3, 4, 8, 16)
NETWORK_SHARES = (0.5, 0.6, 0.7)
Fold = dict[str, torch.Tensor]
Score = Callable[[Fold], torch.Tensor]


@torch.no_grad()
def learned(pairs: Pairs, seed: int) -> list[Fold]:
    """For each fold what every member (K, B, T, O) and the forests say of the shots left out."""
    folds = []
    for train, held in pairs:
        with torch.enable_grad():
            network = fit(train, CHOSEN, seed, MEMBERS)
        data = fusion.ShotRows(held, "study")
        batch = fusion.collate([data[i] for i in range(len(data))])
        forests = network.second_opinion(batch["features"])
        assert forests is not None
        folds.append(batch | {"logits": network(batch["features"]), "forests": forests})
    return folds


def aucs(folds: Sequence[Fold], score: Score) -> NDArray[np.float64]:
    """Shot and slice AUC of a score (B, T), means over the folds."""
    return np.mean([_auc_pair(fold, score(fold).double().numpy()) for fold in folds], axis=0)


def _auc_pair(fold: Fold, score_BT: NDArray[np.float64]) -> tuple[float, float]:
    rows = np.empty(len(score_BT), object)
    rows[:] = [score[:n] for score, n in zip(score_BT, fold["lengths"].tolist(), strict=True)]
    known = {name: fold[name].numpy() for name in ("fall_row", "disrupted")}
    known["probability"] = rows
    return alarms.auc(alarms.shot_scores(known), known["disrupted"]), alarms.slice_auc(known)


def of_members(members: Sequence[int]) -> Score:
    """The recipe's own score, by some of the members."""
    chosen = list(members)
    return lambda fold: score_logit(fold["logits"][chosen], fold["forests"])


def of_ranks(network_share: float, early: float) -> Score:
    """Ranks among all rows of network and forests, joined; `early` is taken off the first rows."""

    def score(fold: Fold) -> torch.Tensor:
        network = score_logit(fold["logits"])
        trees = held_low(forest_logit(fold["forests"]))
        low = held_low(torch.zeros_like(network))
        real = torch.arange(network.shape[1]) < fold["lengths"][:, None]
        parts = [_ranks(part - low, real) for part in (network, trees)]
        return network_share * parts[0] + (1 - network_share) * parts[1] + early * low / 2

    return score


def _ranks(value_BT: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
    ordered = value_BT[real_BT].sort().values
    return torch.searchsorted(ordered, value_BT.contiguous()) / len(ordered)


def main() -> None:
    """Print the figures of every seed and kind of fold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", default=["random", "blocks"])
    parser.add_argument("--folds", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    machine = read_machine(asked.data)
    pairs = inner_splits([s for s in machine.shots if s.shot_id < splits.FIRST_TEST_SHOT])
    for seed in asked.seeds:
        for kind in asked.kinds:
            folds, draw = learned(pairs[kind][: asked.folds], seed), np.random.default_rng(0)
            for count in COUNTS:
                drawn = [draw.permutation(MEMBERS)[:count] for _ in range(NUM_DRAWS)]
                each = np.array([aucs(folds, of_members(one.tolist())) for one in drawn])
                (shot, slices), spread = each.mean(0), each[:, 0].std()
                print(f"{kind} {seed}: {count} members {shot:.4f} sd {spread:.4f} {slices:.4f}")
            for share in NETWORK_SHARES:
                for early in (0.0, 0.3):
                    shot, slices = aucs(folds, of_ranks(share, early))
                    print(f"{kind} {seed}: ranks {share} early {early} {shot:.4f} {slices:.4f}")


if __name__ == "__main__":
    main()
