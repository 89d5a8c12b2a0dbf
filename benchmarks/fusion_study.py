"""The comparison behind the fusion recipe: which network, how good, against what, and why no more.

    python -m benchmarks.fusion_study --data TABLE [--events general.parquet] [--stage select ...]

Stages, each added to `benchmarks/results/fusion.json`, from which `fusion.md` is written anew:

- labels  how many endings of each kind, and whether the event table of the machine agrees;
- select  candidates on shots below 24000 alone: four random folds, and four blocks of neighbouring
          shot numbers left out in turn. No shot of the time split's test is looked at;
- seeds   the chosen candidate there again, for each draw of the folds and each seed;
- final   the chosen candidate on both splits, refitted on training and validation shots, beside
          gradient boosting and the cheats, with paired bootstrap intervals over shots;
- curve   AUC against the number of training shots, and the spread from draw to draw, with a plot
          in `fusion.svg`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armillary.audit import compare
from armillary.recipes import fusion
from armillary.recipes.fusion import alarms, baselines, splits
from armillary.recipes.fusion.network import Ensemble
from armillary.recipes.fusion.signals import Shot, Shots, read_machine
from benchmarks.fusion_plot import write_curves

RESULTS = Path(__file__).with_name("results")
CHOSEN = "gru+forest"
CANDIDATES = ("gru", "lstm", "rows", "gru+rows", "gru+lstm+forest", CHOSEN)
MEMBERS, MEMBERS_IN_CHOICE = 8, 3
NUM_INNER = 4
PARTS = ("network", "forest")
CURVE = (0.2, 0.4, 0.6, 0.8, 1.0)
SEEDS = (0, 1, 2)
SPLITS = ("random", "time")
STAGES = ["labels", "select", "seeds", "final", "curve"]
Predictions = dict[str, np.ndarray]


def fit(train: Sequence[Shot], kinds: str, seed: int = 0, members: int = MEMBERS) -> Ensemble:
    """An ensemble trained on the shots by the recipe's own loss, optimizer and schedule."""
    torch.manual_seed(seed)
    data = fusion.ShotRows(train, "study", training=True)
    network = fusion.build(train, kinds, members, hidden_size=24, dropout=0.3)
    optimizer = fusion.optimizer(network.parameters())
    size, order = int(fusion.settings["global_batch_size"]), np.random.default_rng(seed)
    steps = int(fusion.settings["epochs"]) * -(-len(data) // size)
    scheduler = fusion.scheduler(optimizer, steps)
    batches: list[np.ndarray] = []
    network.train()
    for _ in range(steps):
        if not batches:
            batches = np.array_split(order.permutation(len(data)), -(-len(data) // size))
        batch = fusion.collate([data[int(i)] for i in batches.pop()])
        optimizer.zero_grad()
        fusion.loss(network, batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), fusion.settings["clip_norm"])
        optimizer.step()
        scheduler.step()
    return network.eval()


@torch.no_grad()
def predictions_of(network: Ensemble, test: Sequence[Shot]) -> Predictions:
    """The recipe's predictions of every row of the shots, one array a shot."""
    data = fusion.ShotRows(test, "study")
    batch = fusion.collate([data[i] for i in range(len(data))])
    found = {name: value.numpy() for name, value in fusion.predict(network, batch).items()}
    lengths = found.pop("lengths")
    for name, value in found.items():
        if value.ndim == 2:
            ragged = np.empty(len(value), object)
            ragged[:] = [row[:n].astype(np.float64) for row, n in zip(value, lengths, strict=True)]
            found[name] = ragged
    return found


def judged(shots: Sequence[Shot]) -> list[Shot]:
    """The shots that ended hard or soft."""
    return [s for s in shots if s.ending and (s.ending.is_disruption or s.ending.is_soft)]


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds as one set."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def label_figures(machine: Shots, events: Path | None) -> dict[str, Any]:
    """Counts of endings; the current at the machine's own end event over the maximum, by kind."""
    endings = {shot.shot_id: shot.ending for shot in machine.shots if shot.ending}
    kinds = {
        i: "disruption" if e.is_disruption else "soft" if e.is_soft else "between"
        for i, e in endings.items()
    }
    names = ("disruption", "soft", "between")
    found: dict[str, Any] = {
        "skipped": list(machine.skipped),
        "shots": {name: sum(kind == name for kind in kinds.values()) for name in names},
        "first_test_shot": splits.FIRST_TEST_SHOT,
    }
    if events is None:
        return found
    import pandas

    table = pandas.read_parquet(events).set_index("shot")["disruption.current"].abs()
    peak = {s.shot_id: float(np.nanmax(s.features_TF[:, 0])) * 1e6 for s in machine.shots}
    ratios = {
        name: [table[i] / peak[i] for i, kind in kinds.items() if kind == name and i in table.index]
        for name in names
    }
    hard, soft = np.array(ratios["disruption"]), np.array(ratios["soft"])
    score = np.r_[hard, soft]
    found["events"] = {
        "current_at_event_over_peak": {n: [len(r), float(np.mean(r))] for n, r in ratios.items()},
        "auc_of_that_ratio": alarms.auc(score, np.arange(len(score)) < len(hard)),
        "disruptions_below_half": float((hard < 0.5).mean()),
        "soft_above_four_fifths": float((soft > 0.8).mean()),
    }
    return found


Pairs = list[tuple[list[Shot], list[Shot]]]


def inner_splits(shots: Sequence[Shot], draw: int = 0) -> dict[str, Pairs]:
    """(train, validation) pairs among the shots: random folds, and blocks by shot number."""
    scored = judged(shots)
    shuffled = np.random.default_rng(draw).permutation(len(scored))
    pairs: dict[str, Pairs] = {"random": [], "blocks": []}
    for part in range(NUM_INNER):
        held = {scored[i].shot_id for i in shuffled[part::NUM_INNER]}
        pairs["random"].append(_parted(shots, scored, held))
    for block in np.array_split(np.arange(len(scored)), NUM_INNER):
        first, last = scored[block[0]].shot_id, scored[block[-1]].shot_id
        held = {s.shot_id for s in shots if first <= s.shot_id <= last}
        pairs["blocks"].append(_parted(shots, scored, held))
    return pairs


def _parted(
    shots: Sequence[Shot], scored: Sequence[Shot], held: set[int]
) -> tuple[list[Shot], list[Shot]]:
    return [s for s in shots if s.shot_id not in held], [s for s in scored if s.shot_id in held]


def select(machine: Shots, candidates: Sequence[str]) -> dict[str, Any]:
    """Mean shot and slice AUC of each candidate over the inner splits, boosting beside it."""
    early = [s for s in machine.shots if s.shot_id < splits.FIRST_TEST_SHOT]
    found: dict[str, Any] = {}
    for name in candidates:
        start_s = time.perf_counter()
        found[name] = {}
        for kind, pairs in inner_splits(early).items():
            each = [alarms.evaluate(_inner(name, train, held)) for train, held in pairs]
            for metric in ("shot_auc", "slice_auc"):
                values = [one[metric] for one in each]
                found[name][f"{kind}_{metric}"] = float(np.mean(values))
        found[name]["seconds"] = time.perf_counter() - start_s
        print("select", name, found[name], flush=True)
    return found


def seed_spread(machine: Shots, kinds: str) -> dict[str, list[float]]:
    """Shot AUC on the inner splits for each seed, and for each draw of the random folds."""
    early = [s for s in machine.shots if s.shot_id < splits.FIRST_TEST_SHOT]

    def inner_auc(kind: str, draw: int, seed: int) -> float:
        pairs = inner_splits(early, draw)[kind]
        each = [alarms.evaluate(_inner(kinds, train, held, seed)) for train, held in pairs]
        value = float(np.mean([one["shot_auc"] for one in each]))
        print("seeds", kind, "draw", draw, "seed", seed, value, flush=True)
        return value

    found = {
        "random folds, a seed each": [inner_auc("random", 0, seed) for seed in SEEDS],
        "blocks, a seed each": [inner_auc("blocks", 0, seed) for seed in SEEDS],
    }
    found["random folds, a draw each"] = [
        found["random folds, a seed each"][0],
        *(inner_auc("random", draw, 0) for draw in SEEDS[1:]),
    ]
    return found


def _inner(name: str, train: list[Shot], held: list[Shot], seed: int = 0) -> Predictions:
    if name.startswith("boosting"):
        physics, horizon = "physics" in name, 20 if "100 ms" in name else None
        scores = baselines.boost(judged(train), held, physics=physics, horizon=horizon)
        return fusion.as_predictions(held, scores)
    return predictions_of(fit(train, name, seed, MEMBERS_IN_CHOICE), held)


def final(machine: Shots, split: str, kinds: str) -> dict[str, Any]:
    """evaluation.json of the chosen network on one split, all folds together."""
    parts, others, seconds = [], [], []
    for fold in range(splits.NUM_FOLDS if split == "random" else 1):
        chosen = splits.assign(machine.shots, split, fold, 0.0, checked=False)
        train, test = ([machine.shots[i] for i in chosen[name]] for name in ("train", "test"))
        start_s = time.perf_counter()
        parts.append(predictions_of(fit(train, kinds), test))
        seconds.append(time.perf_counter() - start_s)
        scores = baselines.rival_scores(train, test)
        scores |= {f"alone: {part}": list(parts[-1][f"by_{part}"]) for part in PARTS}
        others.append({name: fusion.as_predictions(test, s) for name, s in scores.items()})
        print("final", split, fold, alarms.evaluate(parts[-1]), seconds[-1], flush=True)
    whole = joined(parts)
    beside = {name: joined([one[name] for one in others]) for name in others[0]}
    whole = {name: whole[name] for name in beside["gradient boosting"]}
    document = compare(whole, beside, fusion.metrics, split=split)
    document["training_s"] = seconds
    times_ms = 1000 * alarms.warning_times(whole)
    counts, edges = np.histogram(times_ms, bins=[0, 30, 50, 100, 150, 200, 300, 400, 1000])
    document["warning_ms"] = {"edges": edges.tolist(), "shots": counts.tolist()}
    return document


def curve(
    machine: Shots, name: str, split: str, shares: Sequence[float], num_draws: int
) -> dict[str, list[float]]:
    """Shot AUC of a predictor from shares of the training shots, one figure a draw of them."""
    parts = [
        splits.assign(machine.shots, split, fold, 0.0, checked=False)
        for fold in range(splits.NUM_FOLDS if split == "random" else 1)
    ]
    found: dict[str, list[float]] = {}
    for share, seed in itertools.product(shares, range(num_draws)):
        each = []
        for part in parts:
            drawn = np.random.default_rng(seed).permutation(part["train"])
            train = [machine.shots[i] for i in drawn[: round(share * len(drawn))]]
            each.append(_inner(name, train, [machine.shots[i] for i in part["test"]], seed))
        value = alarms.evaluate(joined(each))["shot_auc"]
        found.setdefault(f"{share:.0%}", []).append(value)
        print("curve", name, split, found, flush=True)
    return found


def main() -> None:
    """Run the stages asked for and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--events", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "fusion.json")
    parser.add_argument("--stage", nargs="+", default=STAGES)
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES, *BOOSTED])
    parser.add_argument("--curve", nargs="+", default=["boosting", CHOSEN])
    parser.add_argument("--shares", type=float, nargs="+", default=list(CURVE))
    parser.add_argument("--draws", type=int, default=len(SEEDS))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    file = asked.out
    document = json.loads(file.read_text()) if file.exists() else {}
    machine = read_machine(asked.data)
    document["about"] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": 1,
        "members": MEMBERS,
        "chosen": CHOSEN,
        "data": machine.fingerprint,
    }
    if "labels" in asked.stage:
        document["labels"] = label_figures(machine, asked.events)
    if "final" in asked.stage:
        for split in asked.splits:
            document.setdefault("final", {})[split] = final(machine, split, CHOSEN)
            file.write_text(json.dumps(document, indent=1))
    if "select" in asked.stage:
        for name in asked.candidates:
            document.setdefault("select", {}).update(select(machine, [name]))
            file.write_text(json.dumps(document, indent=1))
    if "seeds" in asked.stage:
        document["seeds"] = seed_spread(machine, CHOSEN)
        file.write_text(json.dumps(document, indent=1))
    if "curve" in asked.stage:
        for name, split in itertools.product(asked.curve, asked.splits):
            found = curve(machine, name, split, asked.shares, asked.draws)
            known = document.setdefault("curve", {}).setdefault(f"{name}, {split}", {})
            known |= found
            file.write_text(json.dumps(document, indent=1))
    if "curve" in document:
        write_curves(file.with_suffix(".svg"), document["curve"])
    file.write_text(json.dumps(document, indent=1))
    file.with_suffix(".md").write_text(table(document))


BOOSTED = ("boosting", "boosting, 100 ms", "boosting, physics")
STATE_ALONE = "the 28 of state; 2026-11-22, before the loss was a mean over shots"
"""How the one part of fusion.json that is not of the code as it is was taken."""


def table(document: dict[str, Any]) -> str:
    """The figures as markdown tables."""
    lines = ["# Fusion: disruption alarms on MAST", "", "Written by fusion_study.py.", ""]
    for split, found in document.get("final", {}).items():
        lines += [
            f"## Split: {split}, {found['num_samples']} test shots",
            "",
            "| metric | predictor | value | 95 % interval | model minus it |",
            "|---|---|---|---|---|",
        ]
        for metric, entry in found["metrics"].items():
            for name, one in {"model": entry["model"], **entry["rivals"]}.items():
                gap = (
                    ""
                    if name == "model"
                    else (
                        f"{_f(one['difference'])} ({_f(one['difference_low'])} to "
                        f"{_f(one['difference_high'])})"
                    )
                )
                lines.append(
                    f"| {metric} | {name} | {_f(one['value'])} | "
                    f"{_f(one['low'])} to {_f(one['high'])} | {gap} |"
                )
        lines.append("")
    for key, on in (("select", "state and memory"), ("select_state_alone", STATE_ALONE)):
        if key not in document:
            continue
        lines += [
            f"## Choice, on shots below 24000 alone ({MEMBERS_IN_CHOICE} members; features: {on})",
            "",
            "| candidate | random folds: shot, slice AUC | blocks: shot, slice AUC |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {_f(v['random_shot_auc'])}, {_f(v['random_slice_auc'])} | "
            f"{_f(v['blocks_shot_auc'])}, {_f(v['blocks_slice_auc'])} |"
            for name, v in document[key].items()
        ]
        lines.append("")
    if "seeds" in document:
        lines += [
            f"## {CHOSEN} there again ({MEMBERS_IN_CHOICE} members): shot AUC",
            "",
            "| spread over | shot AUC |",
            "|---|---|",
            *(f"| {name} | {', '.join(map(_f, v))} |" for name, v in document["seeds"].items()),
            "",
        ]
    if "curve" in document:
        lines += [
            "## Shot AUC against the number of training shots, one figure a draw",
            "",
            f"{CHOSEN} with {MEMBERS_IN_CHOICE} members here.",
            "",
            "| predictor, split | share of the training shots | shot AUC |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {n} | {', '.join(map(_f, v))} |"
            for name, counts in document["curve"].items()
            for n, v in counts.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _f(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
