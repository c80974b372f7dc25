"""The summary of a run and verdicts, as they are printed: exact texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal
from bnlab.terminal.summary import measuring, outcome, show_summary, steepest

TIMING = {"run_s": 4.0, "measure_s": 0.5, "steps_per_s": 250.0}
FINISHED: dict[str, Any] = {
    "status": "finished",
    "step": 1000,
    "steps": 1000,
    "metrics": {"train_loss": 0.125, "train_accuracy": 1.0, "test_loss": 0.25, "test_accuracy": 0.91666},
    "dead": False,
    "timing": TIMING,
}
RECORDS: list[dict[str, Any]] = [
    {"step": 0, "train_loss": 2.5, "drift_mean.pre": [None, None, None], "first_over_last": 9.0},
    {"step": 1, "train_loss": 2.0, "drift_mean.pre": [0.1, 0.5, 0.2]},
    {"step": 2, "train_loss": 1.5, "drift_mean.pre": [0.1, 0.3, 0.9], "first_over_last": 0.25},
    {"step": 3, "train_loss": 1.0, "drift_mean.pre": [0.1, 0.4, 0.1], "first_over_last": None},
]


def test_the_five_lines_of_a_finished_run() -> None:
    out = io.StringIO()
    show_summary(FINISHED, Path("runs/a"), RECORDS[:3], "bnlab view runs", out)
    assert out.getvalue().splitlines() == [
        "finished   test accuracy 0.9167, loss 0.25; train accuracy 1, loss 0.125; step 1000/1000",
        "run        runs/a",
        "steepest   largest drift at L02, 0.55 sd per measurement; weight gradient of first over last layer 0.25",
        "measuring  took 12 % of 4 s (250 steps/s)",
        "next       bnlab view runs",
    ]


def test_what_was_found_in_the_run_comes_before_the_next_command(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_spec({"name": "a", "seed": 0, "optim": {"name": "sgd", "lr": 0.1}, "probes": {"points": 100}}, {})
    run.write_status(FINISHED)
    journal = Journal(run.journal_file)
    for step in range(10):
        journal.append({"step": step, "train_loss": 2.0, "dead_fraction": [0.5, None]})
    journal.close()
    out = io.StringIO()
    show_summary(FINISHED, run.path, RECORDS, "bnlab view runs", out)
    assert out.getvalue().splitlines()[4:] == [
        "findings   L00 has dead units: 0.5 of its ReLU channels are 0 on the whole probe batch, 0.5 at the start; "
        "1 of 1 layer above 0.4.",
        "           Nothing else stands out: no spikes of the loss.",
        "next       bnlab view runs",
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"dead": True}, "no better than chance; step 1000/1000"),
        ({"step": 3}, "step 3/1000"),
    ],
)
def test_outcome_without_metrics(more: dict[str, Any], text: str) -> None:
    assert outcome({**FINISHED, "metrics": {}, **more}, []) == text


def test_outcome_of_an_interrupted_run_tells_the_last_loss() -> None:
    status = {"status": "interrupted", "step": 4, "steps": 10, "metrics": {}}
    assert outcome(status, RECORDS) == "loss 1; step 4/10"
    out = io.StringIO()
    show_summary(status, Path("a"), RECORDS, "x", out)
    assert out.getvalue().splitlines()[-1] == "resume       x"


@pytest.mark.parametrize(
    ("loss", "site", "text"),
    [
        (None, "L17_fc", "at step 34 of 300: loss not finite, first non-finite activation at L17_fc"),
        (5.08345e22, None, "at step 34 of 300: loss 5.083e22, all activations finite"),
    ],
)
def test_outcome_of_a_divergence(loss: float | None, site: str | None, text: str) -> None:
    status = {"status": "diverged", "step": 34, "steps": 300, "metrics": {"test_loss": None}}
    assert outcome({**status, "diverged": {"step": 34, "loss": loss, "site": site}}, RECORDS) == text


def test_a_metric_that_is_not_finite_is_a_dash() -> None:
    status = {**FINISHED, "metrics": {"test_loss": None}}
    assert outcome(status, []) == "test loss -; step 1000/1000"


def test_steepest_takes_the_layer_of_the_largest_median_drift() -> None:
    assert steepest(RECORDS) == "largest drift at L01, 0.4 sd per measurement"
    assert steepest([{"step": 0, "train_loss": 1.0}]) == "no layer was measured"


def test_a_drift_that_was_never_finite_names_no_layer() -> None:
    assert steepest(RECORDS[:1]) == "weight gradient of first over last layer 9"


def test_measuring_without_timing() -> None:
    assert measuring({"status": "interrupted"}) == "not known"
