"""Choosing among runs and sorting them, by anything that is known about them."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.analysis.select import Selection
from bnlab.cli import main
from bnlab.core.errors import UsageError

RUNS: list[dict[str, Any]] = [
    {
        "run": "a",
        "norm.name": "none",
        "optim.lr": 0.3,
        "seed": 0,
        "data.batch_size": 64,
        "loss": 0.5,
        "data.flip": True,
    },
    {"run": "b", "norm.name": "batch", "optim.lr": 1, "seed": 0, "data.batch_size": "full", "loss": math.nan},
    {"run": "c", "norm.name": "batch", "optim.lr": 0.1, "seed": 2, "data.batch_size": 8, "loss": None, "run.id": "012"},
    {"run": "d", "norm.name": "layer", "optim.lr": 0.1, "seed": 1, "norm.layers": [0, 2], "loss": -1.0, "steps": None},
]


def chosen(*where: str, sort: tuple[str, ...] = ()) -> str:
    return "".join(RUNS[index]["run"] for index in Selection(where=where, sort=sort).of(RUNS))


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (("norm=batch",), "bc"),
        (("norm != batch",), "ad"),
        (("norm==none,layer",), "ad"),
        (("norm!=none,layer",), "bc"),
        (("norm.name=batch", "seed=0"), "b"),
        (("optim.lr=1e-1",), "cd"),
        (("lr=0.30000000000000004",), "a"),  # alike to 12 digits
        (("optim.lr>=0.3",), "ab"),
        (("optim.lr>0.3",), "b"),
        (("optim.lr<0.3",), "cd"),
        (("optim.lr<=3e-1", "seed<1"), "a"),
        (("data.batch_size=64",), "a"),
        (("data.batch_size=full",), "b"),
        (("data.batch_size<100",), "ac"),  # a text is neither less nor more
        (("loss<inf",), "ad"),
        (("loss=null",), "c"),
        (("steps=null",), "abcd"),  # known of none
        (("data.flip=true",), "a"),
        (("norm.layers=[0,2]",), "d"),
        (("run.id=012",), "c"),  # a text stays one
        (("norm=bach",), ""),
    ],
)
def test_conditions_must_all_hold(where: tuple[str, ...], found: str) -> None:
    assert chosen(*where) == found


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ((), "abcd"),
        (("lr",), "cdab"),
        (("-lr",), "bacd"),
        (("lr", "-seed"), "cdab"),
        (("-lr", "seed"), "badc"),
        (("loss",), "dabc"),  # without a value last, ...
        (("-loss",), "adbc"),  # ... downwards too
        (("data.batch_size",), "cabd"),  # numbers before words
        (("batch_size",), "cabd"),  # the last part of a key, where one key has it
        (("norm", "lr"), "cbda"),
    ],
)
def test_runs_are_sorted_by_the_first_key_and_then_the_next(keys: tuple[str, ...], found: str) -> None:
    assert chosen(sort=keys) == found


@pytest.mark.parametrize(
    ("where", "sort", "line"),
    [
        ("optim.lrr=1", "", r"^--where: no such key in these runs, got 'optim\.lrr'\. Did you mean: optim\.lr\?$"),
        ("", "-batch_siz", r"^--sort: .* got 'batch_siz'\. Did you mean: data\.batch_size\?$"),
        ("norm", "", r"^--where: not a condition, got 'norm'\. Write norm=batch, "),
        ("lr=small", "", r"^--where: lr is a number in these runs, got 'lr=small'\.$"),
        ("data.flip=1", "", r"^--where: data\.flip is true or false in these runs, got 'data\.flip=1'\.$"),
        ("lr<small", "", r"^--where: < needs a number after it, got 'lr<small'\.$"),
        ("norm>1", "", r"^--where: norm is not a number in these runs, got 'norm>1'\. Use = or !=\.$"),
    ],
)
def test_a_mistake_is_reported_in_one_line(where: str, sort: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        chosen(*([where] if where else []), sort=(sort,) if sort else ())


# -- the command -------------------------------------------------------------------------------------------------------


def said(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main([str(word) for word in words])
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    return code or 0, out.getvalue(), err.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs of two norms. The last one has not begun."""
    for name, norm, depth, accuracy in [("a", "none", 2, 0.5), ("b", "batch", 8, 0.9), ("c", "batch", 2, 0.7)]:
        folder = tmp_path / name
        folder.mkdir()
        spec = {"seed": 0, "norm": {"name": norm}, "model": {"depth": depth}, "provenance": {"torch": "2.13.0"}}
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        metrics = {"train_loss": 1 - accuracy, "test_accuracy": accuracy, "test_loss": 2.0}
        (folder / "status.json").write_text(json.dumps({"status": "finished", "step": 9, "metrics": metrics}))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "spec.yaml").write_text("norm: {name: batch}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--sort", "final_loss"), "bcad"),
        (("--sort", "-model.depth", "--sort", "test_accuracy"), "bacd"),
        (("--where", "norm=batch", "--sort=-final_train_loss"), "cbd"),
        (("--where", "status=finished", "--where", "model.depth<8", "--where", "test_loss=2"), "ac"),
        (("--where", "provenance.torch=2.13.0", "--sort", "model"), None),
    ],
)
def test_runs_are_chosen_by_columns_keys_and_metrics(words: tuple[str, ...], found: str | None, root: Path) -> None:
    code, out, err = said("runs", root, *words, "--json")
    if found is None:
        assert (code, out, err.startswith("--sort: no such key in these runs, got 'model'.")) == (2, "", True)
        return
    assert (code, err) == (0, "")
    assert "".join(Path(run["run"]).name for run in json.loads(out)["runs"]) == found
    table = said("runs", root, *words)[1].splitlines()
    assert [Path(line.split()[-1]).name for line in table[2:]] == list(found)


def test_a_key_of_the_selection_has_a_column(root: Path) -> None:
    words = ("runs", root, "--sort", "model.depth", "--where", "norm=batch")
    lines = said(*words)[1].splitlines()
    assert lines[0].split()[:6] == ["status", "norm", "lr", "seed", "model.depth", "step"]
    assert [line.split()[4] for line in lines[2:]] == ["2", "8", "-"]
    assert [run["model.depth"] for run in json.loads(said(*words, "--json")[1])["runs"]] == [2, 8, None]
    assert "norm.name" not in lines[0]


def test_the_table_has_what_tells_runs_apart_unasked(root: Path) -> None:
    heads = said("runs", root)[1].splitlines()[0].split()
    assert heads == [
        "status",
        "norm",
        "lr",
        "seed",
        "model.depth",
        "step",
        "train",
        "loss",
        "test",
        "acc",
        "age",
        "run",
    ]
    assert "model.depth" not in json.loads(said("runs", root, "--json")[1])["runs"][0]


def test_an_empty_selection_is_reported(root: Path) -> None:
    assert said("runs", root, "--where", "norm=bach") == (0, "none of 4 runs\n", "")
    assert said("runs", root, "--where", "norm=bach", "--json") == (0, '{"runs": []}\n', "")


def test_a_selection_from_one_run_is_a_table_of_it(root: Path) -> None:
    assert said("runs", root / "a", "--where", "seed=0")[1].splitlines()[2].startswith("finished  none")
