"""`bnlab runs --by`, `--csv` and `--latex`: averages by keys, and tables for other programs."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def arms(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Two norms, two rates, three seeds; without a norm, one run diverged."""
    for norm, lr, seed in itertools.product(("none", "batch"), (0.1, 1.0), range(3)):
        lost = (norm, lr, seed) == ("none", 1.0, 2)
        metrics = {"test_accuracy": 0.5 + 0.1 * seed + 0.2 * (norm == "batch"), "train_loss": lr + seed}
        how = {"status": "diverged"} if lost else {"metrics": metrics}
        write(tmp_path / "runs", norm=norm, lr=lr, seed=seed, **how)
    return tmp_path / "runs"


def test_runs_are_averaged_by_keys(arms: Path, in_process: Callable[..., Any]) -> None:
    found = in_process("runs", arms, "--by", "norm,lr", "--of", "test_accuracy", "--json").json["groups"]
    assert [(one["norm"], one["lr"], one["runs"], one["diverged"]) for one in found] == [
        ("batch", 0.1, 3, 0), ("batch", 1.0, 3, 0), ("none", 0.1, 3, 0), ("none", 1.0, 3, 1),
    ]  # fmt: skip
    first, last = found[0], found[-1]
    assert (first["test_accuracy"], first["test_accuracy.sd"]) == pytest.approx((0.8, 0.1))
    half = 4.302652729911275 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert (first["test_accuracy.low_95"], first["test_accuracy.high_95"]) == pytest.approx((0.8 - half, 1.0))
    assert (last["test_accuracy.n"], last["test_accuracy"]) == (2, pytest.approx(0.55))


def test_what_a_row_is_over_is_said_and_an_accuracy_stays_a_share(arms: Path, in_process: Callable[..., Any]) -> None:
    said = in_process("runs", arms, "--by", "norm", "--of", "test_accuracy")
    assert said.err == "each mean is over all values of optim.lr; --by or --where keeps them apart\n"
    assert in_process("runs", arms, "--by", "norm,lr", "--of", "test_accuracy").err == ""
    found = in_process("runs", arms, "--by", "norm,lr", "--of", "test_accuracy", "--json").json
    assert found["pooled"] == []
    assert found["groups"][0]["test_accuracy.high_95"] == 1.0
    assert in_process("runs", arms, "--by", "norm,batch_size", "--json").code == 0


def test_a_table_can_be_csv_or_latex(arms: Path, in_process: Callable[..., Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(in_process("runs", arms, "--by", "norm", "--csv").out)))
    assert [(row["norm"], row["runs"], float(row["test_accuracy"])) for row in rows] == [
        ("batch", "6", pytest.approx(0.8)), ("none", "6", pytest.approx(0.58)),
    ]  # fmt: skip
    lines = in_process("runs", arms, "--by", "norm", "--of", "test_accuracy", "--latex").out.splitlines()
    assert lines[:2] == ["\\begin{tabular}{lrrrrrr}", "\\toprule"]
    assert lines[4].startswith("batch & 6 & 0 & 0.8 & 0.08944 &")
    assert lines[-2:] == ["\\bottomrule", "\\end{tabular}"]
    whole = list(csv.DictReader(io.StringIO(in_process("runs", arms, "--where", "seed=1", "--csv").out)))
    assert {(row["norm"], row["lr"], row["status"]) for row in whole} == {
        (norm, lr, "finished") for norm in ("none", "batch") for lr in ("0.1", "1")
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--by", "nrm"), "--by: no such key in these runs, got 'nrm'. Did you mean: norm?"),
        (("--by", "norm", "--of", "nothing"), "--of: no such key in these runs, got 'nothing'."),
        (("--by", "norm", "--of", "run"), "--of: is not a number in these runs, got 'run'."),
        (("--of", "test_loss"), "--of: cannot be used without --by, got 'test_loss'."),
        (("--csv", "--latex"), "--csv: cannot be used with --latex."),
        (("--csv", "--watch"), "--watch: cannot be used with --json, --csv, --latex, --by or --norms."),
        (("--by", ","), "--by: missing, got ','. Give keys between commas."),
        (("--by", "norm", "--where", "norm=group"), "--by: no run here has ended, got"),
    ],
)
def test_a_mistake_in_an_average_is_one_line(
    words: tuple[str, ...], line: str, arms: Path, in_process: Callable[..., Any]
) -> None:
    said = in_process("runs", arms, *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(line)
    assert said.err.count("\n") == 1
