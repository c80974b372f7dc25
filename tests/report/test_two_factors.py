"""Maps of a metric over two axes."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def grid(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Two norms, two depths, three batch sizes, three seeds; in one cell a seed of the plain net diverged."""
    root = tmp_path / "runs" / "mine"
    for norm, depth, size, seed in itertools.product(("none", "batch"), (2, 20), (4, 16, 64), range(3)):
        accuracy = 0.5 + 0.01 * seed + (0.2 if norm == "batch" and depth == 20 else 0.0) + size / 1000
        lost = (norm, depth, size, seed) == ("none", 20, 64, 1)
        how: dict[str, Any] = {"status": "diverged"} if lost else {"metrics": {"test_accuracy": accuracy}}
        write(root, norm=norm, seed=seed, spec={"data.batch_size": size, "model.depth": depth}, **how)
    return root


WORDS = ("--y", "final_test_accuracy", "--x", "data.batch_size", "--map", "model.depth")


def test_a_cell_has_the_mean_of_its_seeds(grid: Path, in_process: Command, tmp_path: Path) -> None:
    said = in_process("plot", grid, *WORDS, "--out", tmp_path / "x.csv")
    assert (said.code, said.err) == (0, "")
    # At the larger depth each seed is 0.2 better; where one diverged, and counts as 0, the interval leaves a doubt.
    assert said.out.splitlines()[0] == "Final test accuracy: clearly higher with batch norm in 2 of 6 settings"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert len(rows) == 2 * 2 * 3 * 3
    means = {(row["arm"], row["model.depth"], row["data.batch_size"]): row["mean"] for row in rows}
    assert float(means["batch norm", "20", "64"]) == pytest.approx(0.774)
    assert float(means["no norm", "2", "4"]) == pytest.approx(0.514)


def test_it_can_be_a_figure_of_a_study(grid: Path, in_process: Command) -> None:
    (grid / "study.yaml").write_text(
        "name: mine\nbase: deep_mlp\naxes: {norm: 'none,batch'}\nfigures:\n"
        "- {kind: map, by: data.batch_size, versus: model.depth, metric: final_test_accuracy}\n"
    )
    said = in_process("report", grid, "--json")
    assert said.json["figures"][0] == "map-final_test_accuracy-batch_size-depth"
    assert (grid / "figures" / "map-final_test_accuracy-batch_size-depth.svg").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*WORDS[:5], "seed"), None),
        (
            (*WORDS[:5], "model.deph"),
            "--map: no run of this study has such a key, got 'model.deph'. Did you mean: model.depth?",
        ),
        ((*WORDS[:5], "norm"), "plot: norm tells the arms apart, each of which has a map"),
        ((*WORDS[:5], "data"), "plot: only one value of data"),
        ((*WORDS, "--reference", "0.5"), "plot.reference: no such option"),
        ((*WORDS, "--log", "x"), "plot.log: must be 'y' or 'none', got 'x'."),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], line: str | None, grid: Path, in_process: Command) -> None:
    said = in_process("plot", grid, *words)
    assert said.code == (0 if line is None else 2)
    assert said.err.startswith(line or "")
    assert said.err.count("\n") == int(line is not None)
