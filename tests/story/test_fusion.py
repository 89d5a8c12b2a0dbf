"""Is the fusion recipe trained, judged and used as its reader would do it?

The shots here are made in the test: hard endings follow a rise of li and of the density, soft
ones do not. Where the measured table is at hand, its counts of endings are checked too.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from armillary.feeds.shots import VARIABLES, write_shots
from armillary.recipes import fusion
from armillary.recipes.fusion.signals import read_machine
from armillary.recipes.fusion.splits import assign
from armillary.spec import SpecError

COLUMN = {name: i for i, name in enumerate(VARIABLES)}
FIRST, NUM_SHOTS = 23000, 120


def made_shot(hard: bool, seed: int) -> np.ndarray:
    """Signals (T, 16) of a made shot; the current is MAST's in size, some of it negative."""
    generator = np.random.default_rng(seed)
    flat, fall = int(generator.integers(35, 60)), 1 if hard else 14
    shape = np.r_[np.linspace(0.2, 1, 10), np.ones(flat), np.linspace(1, 0, fall + 1), np.zeros(5)]
    signals = generator.normal(1.0, 0.05, (len(shape), len(VARIABLES)))
    ramp = np.clip((np.arange(len(shape)) - 15) / 30, 0, 1) * hard
    signals[:, COLUMN["li"]] += 0.6 * ramp
    signals[:, COLUMN["ne_line"]] = 2e19 * (1 + ramp) * signals[:, COLUMN["ne_line"]]
    signals[:, COLUMN["greenwald_den"]] *= 5e19
    signals[:, COLUMN["q95"]] *= 6
    for name in ("wmhd", "p_rad", "p_nbi"):
        signals[:, COLUMN[name]] *= 1e5
    signals[:, COLUMN["Ip"]] = 7e5 * shape * (-1 if seed % 7 == 0 else 1)
    return signals


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 120 made shots, three of them bad in three ways."""
    shots = {FIRST + 20 * i: made_shot(i % 3 != 0, i) for i in range(NUM_SHOTS)}
    numbers = list(shots)
    shots[numbers[5]][:, COLUMN["Ip"]] = np.nan
    shots[numbers[6]][:, COLUMN["Ip"]] = 7e5  # never ends
    shots[numbers[7]] = shots[numbers[7]][:2]
    ids = np.repeat(numbers, [len(s) for s in shots.values()])
    return write_shots(
        tmp_path_factory.mktemp("made") / "shots.npz", ids, np.concatenate(list(shots.values()))
    )


def splits_of(table: Path, **options: object) -> dict[str, fusion.ShotRows]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fusion.data(str(table), **options)  # type: ignore[arg-type]


def all_predictions(network: torch.nn.Module, shots: fusion.ShotRows) -> dict[str, np.ndarray]:
    batch = fusion.collate([shots[i] for i in range(len(shots))])
    with torch.no_grad():
        found = {name: value.numpy() for name, value in fusion.predict(network, batch).items()}
    lengths = found.pop("lengths")
    for name in fusion.PER_ROW:
        ragged = np.empty(len(lengths), object)
        ragged[:] = [row[:n] for row, n in zip(found[name], lengths, strict=True)]
        found[name] = ragged
    return found


def test_bad_shots_are_named_and_left_out(table: Path) -> None:
    machine = read_machine(str(table))
    reasons = dict(machine.skipped)
    assert sorted(reasons) == [FIRST + 20 * i for i in (5, 6, 7)]
    assert "NaN" in reasons[FIRST + 100]
    assert "does not fall" in reasons[FIRST + 120]
    assert len(machine.shots) == NUM_SHOTS - 3
    with pytest.warns(UserWarning, match=f"3 shots were left out: .*{FIRST + 120}"):
        fusion.data(str(table))


@pytest.mark.parametrize("split", ["random", "time", "most"])
def test_no_shot_is_in_two_parts(table: Path, split: str) -> None:
    parts = [[s.shot_id for s in one.shots] for one in splits_of(table, split=split).values()]
    every = [shot_id for part in parts for shot_id in part]
    assert len(set(every)) == len(every)
    if split == "time":
        train, validation, test = parts
        assert max(train) < min(validation) <= max(validation) < 24000 <= min(test)


def test_every_shot_is_tested_in_one_fold(table: Path) -> None:
    folds = [splits_of(table, split="random", fold=fold)["test"] for fold in range(5)]
    tested = [shot.shot_id for test in folds for shot in test.shots]
    assert len(tested) == len(set(tested)) == NUM_SHOTS - 3


def test_a_model_to_be_used_trains_on_all_but_its_validation(table: Path) -> None:
    assert len(splits_of(table)["test"]) == pytest.approx(NUM_SHOTS / 10, abs=1)
    parts = splits_of(table, split="all")
    assert set(parts) == {"train", "validation"}
    assert len(parts["train"]) + len(parts["validation"]) == NUM_SHOTS - 3


def test_an_unknown_split_is_refused(table: Path) -> None:
    with pytest.raises(SpecError, match="random, time"):
        assign(read_machine(str(table)).shots, "year", 0, 0.1)
    with pytest.raises(SpecError, match="no fold 5"):
        assign(read_machine(str(table)).shots, "random", 5, 0.1)
    with pytest.raises(SpecError, match="kinds"):
        fusion.model(str(table), kinds="gru+woods")


@pytest.mark.parametrize("kinds", ["gru+rows+forest", "gru+forest", "lstm", "tcn+transformer"])
def test_it_learns_from_made_shots(table: Path, kinds: str) -> None:
    torch.manual_seed(0)
    parts = splits_of(table, split="random")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = fusion.model(str(table), kinds=kinds, members=2, hidden_size=12)
    optimizer = fusion.optimizer(network.parameters())
    batch = fusion.collate([parts["train"][i] for i in range(len(parts["train"]))])
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = fusion.loss(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    found = fusion.metrics(all_predictions(network.eval(), parts["test"]))
    assert found["shot_auc"] > 0.9
    assert found["tpr_at_fpr_10"] > 0.5


def test_rivals_and_figures_fit_the_predictions(table: Path) -> None:
    pytest.importorskip("sklearn")
    parts = splits_of(table, split="random")
    rivals = fusion.rivals(parts)
    assert len(rivals) == 6
    for one in rivals.values():
        assert len(one["probability"]) == len(parts["test"])
        assert 0 <= fusion.metrics(one)["shot_auc"] <= 1
    assert fusion.metrics(rivals["gradient boosting"])["shot_auc"] > 0.9
    assert len(fusion.figures(rivals["gradient boosting"], rivals)) == 3


def test_a_checkpoint_scores_shots_without_the_training_table(table: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = fusion.model(str(table)).eval()
        bare = fusion.model(str(tmp_path / "nothing.npz")).eval()
        shots = fusion.read(str(table))
    bare.load_state_dict(trained.state_dict())
    first, second = all_predictions(trained, shots), all_predictions(bare, shots)
    columns, others = fusion.rows(first, shots), fusion.rows(second, shots)
    np.testing.assert_array_equal(columns["probability"], others["probability"])
    assert FIRST + 120 in columns["shot"]  # a shot that has not ended can be scored


def test_every_row_of_an_odd_table_is_scored(table: Path, tmp_path: Path) -> None:
    """Shots in any order, in pieces, short, dark, infinite, never seen: each row in its place."""
    torch.manual_seed(1)
    network = fusion.build(splits_of(table)["train"].shots, "gru+forest", 2, 12, 0.3).eval()
    whole = made_shot(True, 3).astype(np.float32)
    dark, deaf, endless = whole.copy(), whole.copy(), whole.copy()
    dark[:, COLUMN["Ip"]], deaf[:, COLUMN["p_rad"]], endless[7, COLUMN["q95"]] = np.nan, 0, np.inf
    deaf[:, COLUMN["li"]] = np.nan
    pieces = [
        (90001, whole[:20]),
        (12, dark),
        (90001, whole[20:]),
        *((number, one) for number, one in ((7, whole[:1]), (99999, deaf), (5, whole[:3]))),
        *((number, one) for number, one in ((3, endless), (2, whole[:31]), (1, whole))),
    ]
    ids = np.concatenate([np.full(len(rows), number) for number, rows in pieces])
    path = write_shots(tmp_path / "odd.npz", ids, np.concatenate([rows for _, rows in pieces]))
    with pytest.warns(UserWarning, match="4 shots are scored by what can be read .*12: .*NaN"):
        shots = fusion.read(str(path))
    columns = fusion.rows(all_predictions(network, shots), shots)
    np.testing.assert_array_equal(columns["shot"], ids)
    assert all(np.isfinite(columns[name]).all() for name in fusion.PER_ROW)
    assert columns["probability"].min() > 0 and columns["probability"].max() < 1
    scores = {n: columns["probability"][columns["shot"] == n] for n in (1, 2, 5, 7, 90001)}
    for number, score in scores.items():  # cut short or in pieces, a shot's rows score the same
        np.testing.assert_array_equal(score, scores[1][: len(score)], err_msg=str(number))
    assert columns["time_s"][columns["shot"] == 90001][-1] == pytest.approx(
        (len(whole) - 1) * 0.005
    )


def test_a_running_shot_has_the_scores_of_the_whole(table: Path, tmp_path: Path) -> None:
    """To the last digit, wherever it is cut: a row's probability knows no later row."""
    torch.manual_seed(2)
    network = fusion.build(splits_of(table)["train"].shots, "gru+forest", 8, 24, 0.3).eval()
    whole = {i: made_shot(i % 3 != 0, i).astype(np.float32) for i in range(1, 41)}
    running = {i: rows[: 3 + (7 * i) % (len(rows) - 3)] for i, rows in whole.items()}
    scores = []
    for name, parts in (("whole", whole), ("running", running)):
        ids = np.repeat(list(parts), [len(rows) for rows in parts.values()])
        path = write_shots(tmp_path / f"{name}.npz", ids, np.concatenate(list(parts.values())))
        shots = fusion.read(str(path))
        found = fusion.rows(all_predictions(network, shots), shots)["probability"]
        scores.append({i: found[ids == i] for i in parts})
    for i, rows in running.items():
        np.testing.assert_array_equal(scores[1][i], scores[0][i][: len(rows)])


def test_the_endings_of_the_measured_shots(shared_data: Path) -> None:
    machine = read_machine(str(shared_data))
    endings = [shot.ending for shot in machine.shots if shot.ending is not None]
    assert sum(e.is_disruption for e in endings) == 371
    assert sum(e.is_soft for e in endings) == 197
    assert len(endings) == 631


def test_the_loss_is_a_mean_over_shots(table: Path) -> None:
    """So that ranks may have some of the shots each: a bag's shots are not counted in a batch."""
    shots = splits_of(table)["train"]
    model = fusion.build(shots.shots, "gru", members=4, hidden_size=8, dropout=0.0).double()
    for group in model.groups:
        group.noise = 0.0
    batch = [shots[i] for i in range(7)]
    whole = fusion.loss(model, doubled(fusion.collate(batch)))
    alone = [fusion.loss(model, doubled(fusion.collate([shot]))) for shot in batch]
    assert whole.dtype == torch.float64
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)


def doubled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose fractions have 64 bits."""
    return {name: v.double() if v.is_floating_point() else v for name, v in batch.items()}
