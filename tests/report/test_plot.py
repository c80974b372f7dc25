"""`bnlab plot`: what is drawn, from which runs, and what it refuses in one line."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]
Command = Callable[..., Any]


@pytest.fixture
def grid(tmp_path: Path, write: Write) -> Path:
    """Two norms, two batch sizes, three seeds."""
    root = tmp_path / "runs" / "mine"
    for norm, size, seed in itertools.product(("none", "batch"), (16, 64), range(3)):
        accuracy = 0.5 + 0.1 * (norm == "batch") + size / 1000 + 0.01 * seed
        write(root, norm=norm, seed=seed, spec={"data.batch_size": size}, metrics={"test_accuracy": accuracy})
    return root


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_a_metric_is_drawn_against_an_axis_with_every_seed(grid: Path, in_process: Command) -> None:
    words = ("--y", "final_test_accuracy", "--x", "data.batch_size", "--json")
    said = in_process("plot", grid, *words)
    assert said.code == 0
    assert [Path(file).name for file in said.json["files"]] == [
        f"final_test_accuracy-batch_size.{kind}" for kind in ("svg", "png", "csv")
    ]
    found = rows(Path(said.json["files"][2]))
    assert len(found) == 12
    assert {(row["arm"], row["data.batch_size"]) for row in found} == set(
        itertools.product(("no norm", "batch norm"), ("16", "64"))
    )
    for row in found:
        middle = 0.5 + 0.1 * (row["arm"] == "batch norm") + int(row["data.batch_size"]) / 1000
        assert float(row["final_test_accuracy"]) == pytest.approx(middle + 0.01 * int(row["seed"]))
        assert float(row["mean"]) == pytest.approx(middle + 0.01)


@pytest.mark.parametrize(("kind", "head"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml"), ("csv", b"arm,")])
def test_a_picture_goes_where_it_is_wanted(kind: str, head: bytes, grid: Path, in_process: Command) -> None:
    before = set(grid.rglob("*"))
    out = grid.parent / "new" / f"picture.{kind}"
    said = in_process("plot", grid, "--y", "final_test_accuracy", "--x", "data.batch_size", "--out", out)
    assert said.code == 0
    assert said.out.splitlines()[-1] == f"written    {out}"
    assert out.read_bytes().startswith(head)
    assert set(grid.rglob("*")) == before


def test_a_link_in_the_place_of_a_picture_is_not_followed(grid: Path, in_process: Command, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine")
    (grid / "plots").mkdir()
    link = grid / "plots" / "final_test_accuracy-batch_size.csv"
    link.symlink_to(other)
    assert in_process("plot", grid, "--y", "final_test_accuracy", "--x", "data.batch_size").code == 0
    assert other.read_text() == "mine"
    assert link.is_file()
    assert not link.is_symlink()


def test_lines_are_told_apart_by_any_key_and_runs_chosen_by_conditions(grid: Path, in_process: Command) -> None:
    words = ("--y", "final_train_loss", "--x", "norm", "--by", "data.batch_size", "--where", "seed<2", "--json")
    said = in_process("plot", grid, *words)
    assert said.code == 0
    found = rows(Path(said.json["files"][2]))
    assert {row["arm"] for row in found} == {"batch size 16", "batch size 64"}
    assert {row["seed"] for row in found} == {"0", "1"}


def test_options_go_to_the_metric(grid: Path, in_process: Command) -> None:
    words = ("--y", "steps_to", "--x", "data.batch_size", "--json")
    options = [word for text in ("of=train_loss", "target=1.0", "smooth=1") for word in ("--option", text)]
    said = in_process("plot", grid, *words, *options)
    assert (said.code, json.dumps(said.json["titles"]).count("train_loss")) == (0, 1)
    # The loss is 2 x 0.9^step (1 + 0.1 seed), measured at every second step.
    found = {(row["seed"], row["steps_to"]) for row in rows(Path(said.json["files"][2]))}
    assert found == {("0", "8"), ("1", "8"), ("2", "10")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "--y: missing."),
        (("--y", "final_tset_accuracy"), "--y: no such metric, got 'final_tset_accuracy'. Did you mean: final_test_"),
        (("--y", "max_stable_lr"), "--y: must be a metric of a run; this is one of a curve, got 'max_stable_lr'."),
        (("--y", "final_train_loss"), "plot: only one value of optim.lr, got 'final_train_loss'. To get it, train"),
        (("--y", "final_train_loss", "--x", "model.dpeth"), "--x: no run of this study has such a key, got 'model.dp"),
        (("--y", "final_train_loss", "--by", "nothing"), "--by: no run of this study has such a key, got 'nothing'."),
        (("--y", "final_train_loss", "--where", "norm=group"), "--where: no run that has ended is so, got 'norm=group"),
        (("--y", "final_train_loss", "--log", "z"), "plot.log: must be 'xy', 'x', 'y' or 'none', got 'z'."),
        (("--y", "final_train_loss", "--out", "x.gif"), "--out: must end in .svg, .png, .pdf or .csv, got 'x.gif'."),
        (("--y", "steps_to", "--option", "of"), "--option: must be KEY=VALUE, got 'of'."),
        (("--y", "steps_to"), "--option: steps_to needs of, target and smooth. Write --option of=..."),
        (("--y", "steps_to", "--option", "target=nothing"), "--option: steps_to needs of and smooth."),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], line: str, grid: Path, in_process: Command) -> None:
    said = in_process("plot", grid, *words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(line)
