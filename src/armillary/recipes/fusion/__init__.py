"""Will this plasma disrupt? A small ensemble that reads a tokamak shot row by row.

Sixteen slow signals of MAST, every 5 ms, become 47 features that say how near the plasma is to
its known limits, and what became of it on the way (`features`). Recurrent members (the family of
FRNN: Kates-Harbeck, Svyatkovskiy & Tang 2019, Nature 568, 526) learn together how a shot will
end, and whether it does so soon; two forests of random trees give a second opinion (`forest`).
How a shot ended is read from its own plasma current (`labels`), the rivals are gradient boosting
and two cheats (`baselines`), and a shot is judged by the rows until 30 ms before its current
falls (`alarms`).

Data: a table of shots (`armillary.feeds.shots`), found by `path` or ARMILLARY_DATA. None is in
the package. Splits: one shot in ten tests what the others taught (`split=most`); how good the
recipe is was measured on `split=random`, five-fold by shot, and on `split=time`, which tests on
shots >= 24000; `split=all` tests nothing.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR

from armillary.recipes.fusion.alarms import LEAD_ROWS, auc, evaluate, shot_scores, warning_times
from armillary.recipes.fusion.baselines import Scores, rival_scores
from armillary.recipes.fusion.features import FEATURES
from armillary.recipes.fusion.forest import Forest
from armillary.recipes.fusion.labels import STEP_S
from armillary.recipes.fusion.network import (
    ENDS_HARD,
    ENDS_SOON,
    FOREST,
    KINDS,
    NEAR_ROWS,
    NUM_QUANTILES,
    SOON_ROWS,
    Ensemble,
    forest_logit,
    held_low,
    score_logit,
    training_quantiles,
)
from armillary.recipes.fusion.samples import (
    Batch,
    ShotRows,
    TableRows,
    report_doubtful,
    report_skipped,
    truth_of,
)
from armillary.recipes.fusion.signals import Shot, read_machine
from armillary.recipes.fusion.splits import assign
from armillary.spec import SpecError, nearest

# Shapes: K members, B shots, T rows, F features, O outputs, N shots of a split

settings = {
    "epochs": 16,
    "global_batch_size": 64,
    "clip_norm": 1.0,
    # Evaluated at the end alone: the rate has come to 0 there, and what some twenty validation
    # shots choose among epochs is mostly chance (docs/log/2026-11-23-fusion-members.md).
    "evaluate_every_steps": 100_000,
    "checkpoint_every_steps": 36,
}
monitor = "min:loss"

LEARNING_RATE = 6e-3
BAG_SHARE = 0.8
FIRST_JUDGED_ROW = 6
ENDING_WEIGHT, HIGHEST_WEIGHT, NEAR_WEIGHT, SOON_WEIGHT = 0.6, 0.6, 0.5, 1.0
SHARPNESS = 4.0

PER_ROW = ("probability", "by_network", "by_forest", "ends_in_disruption", "within_100ms")


def model(
    path: str = "",
    split: str = "most",
    fold: int = 0,
    validation_share: float = 0.05,
    kinds: str = "gru+forest",
    members: int = 8,
    hidden_size: int = 24,
    dropout: float = 0.3,
) -> nn.Module:
    for kind in kinds.split("+"):
        if kind not in (*KINDS, FOREST):
            raise SpecError(
                "fusion.kinds",
                f"{kind!r} is no kind of member",
                "kinds are joined by +, as in gru+forest",
                nearest(kind, [*KINDS, FOREST]),
            )
    try:
        shots = data(path, split, fold, validation_share)["train"].shots
    except SpecError:  # no table here: a checkpoint brings the quantiles and the trees
        shots = ()
    return build(shots, kinds, members, hidden_size, dropout)


def data(
    path: str = "", split: str = "most", fold: int = 0, validation_share: float = 0.05
) -> dict[str, ShotRows]:
    machine = read_machine(path or None)
    report_skipped(machine)
    parts = assign(machine.shots, split, fold, validation_share)
    return {
        name: ShotRows(
            [machine.shots[i] for i in indices], machine.fingerprint, training=name == "train"
        )
        for name, indices in parts.items()
    }


def collate(samples: Sequence[Batch]) -> Batch:
    features = pad_sequence([s["features"] for s in samples], True, float("nan"))
    rest = {
        name: torch.stack([s[name] for s in samples]) for name in samples[0] if name != "features"
    }
    return rest | {"features": features}


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    logits_KBTO = model(batch["features"])
    bag_KB: torch.Tensor | float = 1.0
    if model.training:
        bag_KB = shown(batch["shot"], len(logits_KBTO)) / BAG_SHARE
    row = torch.arange(logits_KBTO.shape[2], device=logits_KBTO.device)
    before_BT = row <= batch["fall_row"][:, None]
    hardness_B, weight_B = at_least_single(batch["hardness"]), at_least_single(batch["weight"])

    ends_KBT = at_least_single(logits_KBTO[..., ENDS_HARD])
    target_KBT = hardness_B[:, None].to(ends_KBT.dtype).expand_as(ends_KBT)
    each_KBT = F.binary_cross_entropy_with_logits(ends_KBT, target_KBT, reduction="none")
    judged_BT = before_BT & (row >= FIRST_JUDGED_ROW)
    ending_KB = masked_mean(each_KBT, judged_BT) * weight_B

    scored_BT = judged_BT & (row <= batch["fall_row"][:, None] - LEAD_ROWS)
    highest_KB = soft_maximum(ends_KBT, scored_BT)
    highest_KB = weight_B * F.binary_cross_entropy_with_logits(
        highest_KB, hardness_B.to(highest_KB.dtype).expand_as(highest_KB), reduction="none"
    )

    timed_KB = timing_loss(logits_KBTO, batch, before_BT)
    per_shot_KB = ENDING_WEIGHT * ending_KB + HIGHEST_WEIGHT * highest_KB + timed_KB
    return (per_shot_KB * bag_KB).mean()  # over shots, so that ranks may have some of them each


def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))


def scheduler(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.15)


def predict(model: Ensemble, batch: Batch) -> Batch:
    features_BTF = batch["features"]
    if "is_scored" in batch:  # in 64 bits, so that a shot cut short scores the same
        model, features_BTF = copy.deepcopy(model).double(), features_BTF.double()
    logits_KBTO = at_least_single(model(features_BTF))
    mean_BTO = logits_KBTO.mean(0)
    forests_BT2 = model.second_opinion(features_BTF)
    trees_BT = torch.zeros_like(mean_BTO[..., 0])
    if forests_BT2 is not None:
        trees_BT = forest_logit(at_least_single(forests_BT2))
    known = ("shot", "disrupted", "fall_row", "quench_row", "lengths")
    return {
        "probability": torch.sigmoid(score_logit(logits_KBTO, forests_BT2)),
        "by_network": torch.sigmoid(score_logit(logits_KBTO)),
        "by_forest": torch.sigmoid(held_low(trees_BT)),
        "ends_in_disruption": torch.sigmoid(mean_BTO[..., ENDS_HARD]),
        "within_100ms": torch.sigmoid(mean_BTO[..., ENDS_SOON]),
        **{name: batch[name] for name in known},
    }


def metrics(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    return evaluate(predictions)


def rivals(data: Mapping[str, ShotRows]) -> dict[str, dict[str, np.ndarray]]:
    seen = (*data["train"].shots, *data["validation"].shots)
    test = data["test"].shots
    return {name: as_predictions(test, s) for name, s in rival_scores(seen, test).items()}


def figures(
    predictions: dict[str, np.ndarray], rivals: dict[str, dict[str, np.ndarray]]
) -> dict[str, go.Figure]:
    curves = go.Figure(
        layout={
            "xaxis_title": "soft shots with an alarm, share",
            "yaxis_title": "disruptions with an alarm, share",
        }
    )
    warned = go.Figure(
        layout={
            "xaxis_title": "first alarm before the quench, ms",
            "yaxis_title": "disruptions",
            "barmode": "overlay",
        }
    )
    for name, one in {"model": predictions, **rivals}.items():
        score, hard = shot_scores(one), np.asarray(one["disrupted"], bool)
        levels = np.r_[np.inf, np.sort(score)[::-1]]
        false = [(score[~hard] >= level).mean() for level in levels]
        true = [(score[hard] >= level).mean() for level in levels]
        curves.add_scatter(x=false, y=true, name=f"{name} ({auc(score, hard):.3f})")
        if name in ("model", "gradient boosting"):
            bins = {"start": 0, "end": 1000, "size": 25}
            warned.add_histogram(x=1000 * warning_times(one), name=name, opacity=0.6, xbins=bins)
    examples = go.Figure(
        layout={
            "xaxis_title": "before the fall of the current, ms",
            "yaxis_title": "probability of a disruption",
        }
    )
    disrupted = np.asarray(predictions["disrupted"], bool)
    for i in (*np.flatnonzero(disrupted)[:3], *np.flatnonzero(~disrupted)[:3]):
        probability = predictions["probability"][i]
        before_ms = 1000 * STEP_S * (np.arange(len(probability)) - predictions["fall_row"][i])
        examples.add_scatter(
            x=before_ms[before_ms <= 0],
            y=probability[before_ms <= 0],
            name=f"{int(predictions['shot'][i])}, {'disruption' if disrupted[i] else 'soft'}",
            line={"dash": "solid" if disrupted[i] else "dot"},
        )
    return {
        "Alarms, true and false": curves,
        "Warning at 10 % false alarms": warned,
        "Some shots of the test set": examples,
    }


def read(path: str) -> ShotRows:
    machine = read_machine(path, with_endings=False)
    report_doubtful(machine)
    return TableRows(machine)


def rows(predictions: dict[str, np.ndarray], dataset: TableRows) -> dict[str, np.ndarray]:
    """One row for each row of the table, in its order, with a probability each."""
    columns = {"shot": dataset.table.row_shot_ids, "time_s": dataset.table.row_time_s}
    for name in PER_ROW:
        columns[name] = np.full(dataset.table.num_rows, np.nan, np.float32)
        for place, values in zip(dataset.places, predictions[name], strict=True):
            columns[name][place] = values
    return columns


def build(
    shots: Sequence[Shot], kinds: str, members: int, hidden_size: int, dropout: float
) -> Ensemble:
    """The ensemble with what it takes from the training shots: quantiles, and trees grown."""
    quantiles = quantiles_of(shots) if shots else np.full((len(FEATURES), NUM_QUANTILES), np.nan)
    network = Ensemble(kinds.split("+"), members, quantiles, hidden_size, dropout)
    if network.forests and shots:
        rows, hard, soon = forest_rows(shots)
        for seed, (forest, target) in enumerate(zip(network.forests, (hard, soon), strict=True)):
            cast(Forest, forest).grow(rows, target, seed)
    return network


def forest_rows(shots: Sequence[Shot]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N, F) until the current falls, whether their shots ended in a disruption (N), and
    whether it began within 100 ms (N)."""
    rows, hard, soon = [], [], []
    for shot in shots:
        end = shot.ending
        if end is None or not (end.is_disruption or end.is_soft):
            continue
        row = np.arange(FIRST_JUDGED_ROW, end.fall_row + 1)
        rows.append(shot.features_TF[row].astype(np.float32))
        hard.append(np.full(len(row), end.is_disruption))
        soon.append((row >= end.fall_row - SOON_ROWS[0]) & end.is_disruption)
    return np.concatenate(rows), np.concatenate(hard), np.concatenate(soon)


def quantiles_of(shots: Sequence[Shot]) -> np.ndarray:
    """Quantiles (F, Q) of the features of the shots' rows until their current falls."""
    return training_quantiles(
        np.concatenate([shot.features_TF[: int(truth_of(shot)["fall_row"]) + 1] for shot in shots])
    )


def as_predictions(shots: Sequence[Shot], scores: Scores) -> dict[str, np.ndarray]:
    """Scores of every row in the form that `predict` gives, for rivals."""
    every = np.empty(len(scores), object)
    every[:] = scores
    truth = [truth_of(shot) for shot in shots]
    found = {
        name: np.array([one[name] for one in truth])
        for name in ("shot", "disrupted", "fall_row", "quench_row")
    }
    return {"probability": every, **found}


def shown(shot_B: torch.Tensor, members: int) -> torch.Tensor:
    """1 where a member (K, B) is shown a shot, else 0: its share is drawn by the shot's number."""
    member = torch.arange(members, device=shot_B.device)[:, None]
    mixed = (shot_B.long() * 7919 + member * 104729 + shot_B.long() * member * 31) % 1009
    return (mixed < BAG_SHARE * 1009).float()


def at_least_single(value: torch.Tensor) -> torch.Tensor:
    """`value` in 32 bits, or as it is where it has more."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def masked_mean(value_KBT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The mean (K, B) over the rows of the mask; 0 where it has none."""
    mask = mask_BT.to(value_KBT.dtype)
    return (value_KBT * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def soft_maximum(value_KBT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """A smooth maximum (K, B) over the rows of the mask, never above the true one."""
    hidden = value_KBT.masked_fill(~mask_BT, -1e4)
    count = mask_BT.sum(-1).clamp(min=1).log()
    found = (torch.logsumexp(SHARPNESS * hidden, -1) - count) / SHARPNESS
    return torch.where(mask_BT.any(-1), found, 0.0)


def timing_loss(logits_KBTO: torch.Tensor, batch: Batch, before_BT: torch.Tensor) -> torch.Tensor:
    """Cross entropy (K, B) of "the shot ends within h" and "it disrupts within h"."""
    row = torch.arange(before_BT.shape[1], device=before_BT.device)
    left_BT = batch["fall_row"][:, None] - row
    near = torch.stack([left_BT <= h for h in NEAR_ROWS], -1).float()
    soon = torch.stack([left_BT <= h for h in SOON_ROWS], -1).float()
    soon = soon * at_least_single(batch["hardness"])[:, None, None]
    found = logits_KBTO.new_zeros(())
    for start, target, weight in ((1, near, NEAR_WEIGHT), (ENDS_SOON, soon, SOON_WEIGHT)):
        chosen = at_least_single(logits_KBTO[..., start : start + target.shape[-1]])
        each = F.binary_cross_entropy_with_logits(
            chosen, target.to(chosen.dtype).expand_as(chosen), reduction="none"
        ).mean(-1)
        found = found + weight * masked_mean(each, before_BT)
    return found
