"""Arms against each other: which rate, which numbers, and which are better than which; against plain Python."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from bnlab.analysis.load import read_runs
from bnlab.record.folder import RunFolder
from bnlab.report.prepare import prepare
from bnlab.report.ranking import Ranking, ranking

Write = Callable[..., Path]
NORMS = ("none", "batch", "layer")
GAIN = {"none": 0.0, "batch": 0.05, "layer": 0.051}
SEEDS = range(8)


def accuracy(norm: str, lr: float, seed: int) -> float:
    """Layer norm is better than batch norm with half of the seeds alone; both are better than none with all."""
    wiggle = 0.01 * math.sin(5 * seed + 3) + (0.004 * (-1) ** seed if norm == "layer" else 0.0)
    return 0.8 + GAIN[norm] + wiggle - (0.1 if lr == 1.0 else 0.0)


def loss(norm: str, lr: float, seed: int) -> float:
    return (0.2 if lr == 0.1 else 0.3) * (1 + 0.1 * seed)


@pytest.fixture
def grid(tmp_path: Path, write: Write) -> Path:
    """Three norms, two rates, eight seeds; without a norm, one run diverges at the larger rate."""
    for norm, lr, seed in itertools.product(NORMS, (0.1, 1.0), SEEDS):
        status = "diverged" if (norm, lr, seed) == ("none", 1.0, 5) else "finished"
        metrics = {} if status == "diverged" else {"test_accuracy": accuracy(norm, lr, seed)}
        write(tmp_path, norm=norm, lr=lr, seed=seed, status=status, loss=loss(norm, lr, seed), metrics=metrics)
    return tmp_path


@pytest.fixture
def ranked(grid: Path) -> Ranking:
    collection = read_runs(grid)
    return ranking(collection, prepare(collection))


def sign_flip(differences: list[float]) -> float:
    """Twice the smaller one-sided p of the mean, by all 2^N signs."""
    mean = sum(differences)
    flips = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    larger = sum(flip >= mean - 1e-12 for flip in flips) / len(flips)
    smaller = sum(flip <= mean + 1e-12 for flip in flips) / len(flips)
    return 2 * min(larger, smaller)


def test_each_arm_is_shown_at_its_best_rate_with_the_numbers_of_a_textbook(ranked: Ranking) -> None:
    assert ranked.by == "test_accuracy"
    assert [row.arm for row in ranked.rows] == ["layer norm", "batch norm", "no norm"]
    for row, norm in zip(ranked.rows, ("layer", "batch", "none"), strict=True):
        scores = [accuracy(norm, 0.1, seed) for seed in SEEDS]
        losses = [math.log(loss(norm, 0.1, seed)) for seed in SEEDS]
        assert (row.lr, row.n, row.runs) == (0.1, 8, 16)
        assert row.diverged == (norm == "none")
        assert row.score == pytest.approx(statistics.fmean(scores))
        expected = stats.t.interval(0.95, 7, loc=statistics.fmean(scores), scale=stats.sem(scores))
        assert row.score_interval == pytest.approx(tuple(expected))
        assert row.loss == pytest.approx(math.exp(statistics.fmean(losses)))
        assert row.seconds == 3.0


def test_an_arm_beats_another_by_sign_flips_adjusted_over_all_pairs(ranked: Ranking) -> None:
    pairs = list(itertools.combinations(NORMS, 2))
    p = {
        pair: sign_flip([accuracy(pair[0], 0.1, seed) - accuracy(pair[1], 0.1, seed) for seed in SEEDS])
        for pair in pairs
    }
    ordered = sorted(pairs, key=p.__getitem__)
    adjusted = {
        pair: max(p[other] * (3 - rank) for rank, other in enumerate(ordered[: index + 1]))
        for index, pair in enumerate(ordered)
    }
    assert [pair for pair in pairs if adjusted[pair] <= 0.05] == [("none", "batch"), ("none", "layer")]
    assert {row.arm: row.beats for row in ranked.rows} == {
        "layer norm": ("no norm",),
        "batch norm": ("no norm",),
        "no norm": (),
    }


def test_too_few_seeds_decide_nothing(tmp_path: Path, write: Write) -> None:
    for norm, seed in itertools.product(("none", "batch"), range(3)):
        write(tmp_path, norm=norm, seed=seed, metrics={"test_accuracy": accuracy(norm, 0.1, seed)})
    collection = read_runs(tmp_path)
    found = ranking(collection, prepare(collection))
    assert [row.beats for row in found.rows] == [(), ()]
    assert found.notes == ("3 seeds cannot tell 2 arms apart: 6 or more can",)


@pytest.mark.parametrize(("known", "shown"), [(98410, "98410"), (138_357_544, "138357544"), (None, "-")])
def test_the_table_has_what_a_step_and_a_net_cost(known: int | None, shown: str, tmp_path: Path, write: Write) -> None:
    for norm, seed in itertools.product(("none", "batch"), range(2)):
        folder = RunFolder(write(tmp_path, norm=norm, seed=seed, metrics={"test_accuracy": 0.9}))
        timing = {"run_s": 5.0, "measure_s": 1.0}
        folder.write_status({**folder.status(), "timing": timing, **({"parameters": known} if known else {})})
    collection = read_runs(tmp_path)
    heads, lines = ranking(collection, prepare(collection)).cells()
    steps = collection.runs[0].step
    for line in lines:
        row = dict(zip(heads, line, strict=True))
        assert (row["s/run"], row["parameters"], float(row["ms/step"])) == ("5", shown, pytest.approx(4000 / steps))


def test_a_best_rate_at_the_edge_of_its_grid_is_named(tmp_path: Path, write: Write) -> None:
    for norm, lr, seed in itertools.product(("none", "batch"), (0.01, 0.1, 1.0), range(6)):
        best = 1.0 if norm == "batch" else 0.1
        write(tmp_path, norm=norm, lr=lr, seed=seed, loss=0.1 if lr == best else 0.2, metrics={"test_accuracy": 0.9})
    collection = read_runs(tmp_path)
    found = ranking(collection, prepare(collection))
    assert found.notes == ("the best rate is the first or the last of the grid for batch norm",)
    assert all(row.score_interval == pytest.approx((0.9, 0.9)) for row in found.rows)


def test_without_an_accuracy_arms_are_ranked_by_the_loss(tmp_path: Path, write: Write) -> None:
    for norm, seed in itertools.product(("none", "batch"), range(6)):
        metrics = {"test_accuracy": None, "test_loss": None}
        write(tmp_path, norm=norm, seed=seed, loss=(1 + seed) * (2.0 if norm == "none" else 1.0), metrics=metrics)
    collection = read_runs(tmp_path)
    found = ranking(collection, prepare(collection))
    assert found.by == "train_loss"
    assert [(row.arm, row.score, row.beats) for row in found.rows] == [
        ("batch norm", 3.5, ("no norm",)),
        ("no norm", 7.0, ()),
    ]


@pytest.mark.parametrize("score", ["test_accuracy", "train_loss"])
def test_a_run_that_diverged_counts_as_the_worst(score: str, tmp_path: Path, write: Write) -> None:
    """Batch norm ends a little better wherever it ends, and diverges with seven of eight seeds."""
    for norm, seed in itertools.product(("none", "batch"), range(8)):
        good = norm == "batch"
        metrics = {"test_accuracy": 0.95 if good else 0.9} if score == "test_accuracy" else {}
        metrics |= {} if score == "test_accuracy" else {"test_accuracy": None, "test_loss": None}
        status = "diverged" if good and seed else "finished"
        write(tmp_path, norm=norm, seed=seed, status=status, loss=0.1 if good else 0.2 + 0.001 * seed, metrics=metrics)
    collection = read_runs(tmp_path)
    found = ranking(collection, prepare(collection))
    assert found.by == score
    shown = {row.arm: (row.n, row.diverged, row.score) for row in found.rows}
    assert shown["batch norm"] == (1, 7, 0.95 if score == "test_accuracy" else 0.1)  # of the one that finished
    if score == "test_accuracy":
        assert [(row.arm, row.beats) for row in found.rows] == [("no norm", ("batch norm",)), ("batch norm", ())]
    else:  # the worst loss that is known is no. 7's, hardly worse than the others'
        assert {row.beats for row in found.rows} == {()}


def test_an_arm_without_a_finished_run_comes_last(tmp_path: Path, write: Write) -> None:
    for norm, seed in itertools.product(("none", "batch"), range(2)):
        write(tmp_path, norm=norm, seed=seed, status="diverged" if norm == "batch" else "finished")
    collection = read_runs(tmp_path)
    last = ranking(collection, prepare(collection)).rows[-1]
    assert (last.arm, last.n, last.diverged, math.isnan(last.score), last.score_interval) == (
        "batch norm",
        0,
        2,
        True,
        None,
    )
