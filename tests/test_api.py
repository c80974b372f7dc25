"""What scripts and notebooks take from bnlab: the same runs and numbers that the commands have."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

import bnlab
from bnlab.record.folder import RunFolder
from bnlab.record.runs import Run, read_run
from bnlab.report.sheet import NOTE_PT, wrapped

DOCS = Path(__file__).parents[1] / "docs"
TINY = ("steps=20", "model.depth=2", "model.width=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """Two arms."""
    root = tmp_path_factory.mktemp("api") / "runs"
    return root / "deep_mlp", [bnlab.train("deep_mlp", f"norm={norm}", *TINY, runs=root) for norm in ("none", "batch")]


def test_a_run_is_that_of_the_command(
    trained: tuple[Path, list[Run]], in_process: Callable[..., Any], tmp_path: Path
) -> None:
    said = in_process("train", "--config", "deep_mlp", "norm=batch", *TINY, "--json")
    run = trained[1][1]
    assert (run.state, run.id) == ("finished", said.json["id"])
    theirs = RunFolder(tmp_path / said.json["run"])
    other = read_run(theirs)
    for name in run.measured():
        if name not in ("step", "steps_per_s", "wall_s"):  # the clock is not part of the bits
            np.testing.assert_array_equal(other.series(name).values, run.series(name).values, err_msg=name)
    assert theirs.status()["metrics"] == run.status["metrics"]


def test_a_run_that_has_ended_is_not_trained_again(trained: tuple[Path, list[Run]]) -> None:
    root, (_, run) = trained
    before = run.folder.journal_file.stat().st_mtime_ns
    again = bnlab.train("deep_mlp", "norm=batch", *TINY, runs=root.parent)
    assert (again.id, run.folder.journal_file.stat().st_mtime_ns) == (run.id, before)


def test_runs_are_a_row_each(trained: tuple[Path, list[Run]]) -> None:
    root, runs = trained
    frame = bnlab.load(root)
    losses = dict(frame.select("norm", "final_train_loss").iter_rows())
    assert losses == pytest.approx({run.spec["norm"]: run.final("train_loss") for run in runs})


def test_journals_are_a_row_for_each_value(trained: tuple[Path, list[Run]]) -> None:
    root, runs = trained
    frame = bnlab.journals(root, ["drift_mean.pre", "train_loss"])
    assert frame.columns == ["run", "step", "site", "measurement", "value"]
    for run in runs:
        mine = frame.filter(pl.col("run") == run.path.relative_to(root).as_posix())
        loss = mine.filter(pl.col("measurement") == "train_loss")
        steps, values = run.series("train_loss")
        assert loss["site"].null_count() == len(loss) == len(steps)
        assert loss["step"].to_list() == steps.tolist()
        np.testing.assert_array_equal(loss["value"].to_numpy(), values)
        steps, values = run.series("drift_mean.pre")
        drift = mine.filter(pl.col("measurement") == "drift_mean.pre").pivot(on="site", index="step", values="value")
        np.testing.assert_array_equal(drift.drop("step").to_numpy(), values)
        assert drift["step"].to_list() == steps.tolist()
    assert set(bnlab.journals(root)["measurement"]) == {"train_loss", "test_loss"}


def test_claims_are_judged_from_a_path(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for norm in ("none", "batch"):
        for seed in range(3):
            bnlab.train("deep_mlp", f"norm={norm}", f"seed={seed}", *TINY, "name=mine", runs=root)
    (root / "mine" / "study.yaml").write_text(
        "name: mine\nbase: deep_mlp\naxes: {norm: 'none,batch'}\nclaims:\n- {name: a, text: b, source: c, metric: "
        "final_train_loss, contrast: {norm: [batch, none]}, at: best_lr, expect: smaller, compare: ratio, "
        "smallest_effect: 1}\n"
    )
    (verdict,) = bnlab.judge(root / "mine")
    assert (verdict.claim.name, verdict.n) == ("a", 3)
    assert verdict.effect == bnlab.judge(bnlab.read_runs(root / "mine"))[0].effect


def test_a_sweep_is_that_of_the_command(in_process: Callable[..., Any], tmp_path: Path) -> None:
    """The same runs and verdicts, and a report; what has ended is not run again."""
    study = tmp_path / "configs" / "studies" / "small.yaml"
    study.parent.mkdir(parents=True)
    study.write_text(
        "base: deep_mlp\noverrides: {steps: 20, model.depth: 2, model.width: 8}\naxes: {norm: 'none,batch', seed: "
        "'range(0,6)'}\nclaims:\n- {name: a, text: b, source: c, metric: final_train_loss, contrast: {norm: [batch, "
        "none]}, at: best_lr, expect: smaller, compare: ratio, smallest_effect: 1}\n",
        encoding="utf-8",
    )
    where: dict[str, Any] = {"config_dir": tmp_path / "configs", "runs": tmp_path / "api"}
    changed: list[str] = []
    swept = bnlab.sweep("small", "launch=inline", **where, on_change=lambda one: changed.append(one.state))
    assert changed.count("finished") == 12
    assert (swept.root, swept.failures, swept.notes) == (tmp_path / "api" / "small", {}, ())
    assert swept.report is not None
    assert swept.report.is_file()
    said = in_process("sweep", "--config", "small", "launch=inline", "--json")
    assert len(said.json["runs"]) == 12
    (verdict,), (other,) = swept.verdicts, bnlab.judge(tmp_path / "runs" / "small")
    assert (verdict.decision, verdict.effect) == (other.decision, other.effect)
    changed.clear()
    assert bnlab.sweep("small", "launch=inline", **where, on_change=lambda one: changed.append(one.state)).verdicts
    assert changed == []


def test_the_commands_train_and_sweep_through_the_same_functions(
    in_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def through(name: str) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            raise bnlab.UsageError(name, "was called")

        return called

    for name in ("train_spec", "planned"):
        monkeypatch.setattr(f"bnlab.api.{name}", through(name))
    for command, name in (("train", "train_spec"), ("sweep", "planned")):
        said = in_process(command, "--config", "deep_mlp", *TINY)
        assert (said.code, said.err.splitlines()[-1]) == (2, f"{name}: was called."), said


def test_a_figure_shows_itself(trained: tuple[Path, list[Run]]) -> None:
    shown: Any = bnlab.figure(trained[0], "learning_curves")
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert shown.get_size_inches()[0] == pytest.approx(5.6)


def test_a_notebook_shows_whole_lines(trained: tuple[Path, list[Run]]) -> None:
    """A footnote may fill its line; hinted, it would be cut off at the right edge."""
    shown: Any = bnlab.figure(trained[0], "learning_curves")
    shown.texts[1].set_text("\n".join(wrapped("mean learning rate where none " * 9, NOTE_PT, 5.6 - 0.25)))
    pixels = imread(io.BytesIO(shown._repr_png_()), format="png")[..., :3]
    assert pixels[-40:].min() < 0.6
    assert pixels[:, -4:].min() > 0.98


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda root: bnlab.figure(root, "learning_curve"),
            "figure: the report of these runs has no such figure, got ",
        ),
        (lambda root: bnlab.journals(root, ["drift_mean.pr"]), "measurements: no run here has it, got 'drift_mean.pr'"),
        (lambda root: bnlab.load(root / "nowhere"), "RUNS: no such directory, got "),
        (lambda root: bnlab.journals(root / "nowhere"), "RUNS: no such directory, got "),
        (lambda root: bnlab.train("deep_mlpp", runs=root), "--config: no such experiment, got 'deep_mlpp'."),
        (lambda root: bnlab.train("deep_mlp", "norm=bach", runs=root), "norm: no such option, got 'bach'."),
    ],
)
def test_a_mistake_is_the_line_of_the_command(
    call: Callable[[Path], object], line: str, trained: tuple[Path, list[Run]]
) -> None:
    with pytest.raises(bnlab.UsageError) as raised:
        call(trained[0])
    assert str(raised.value).startswith(line)


def _cells() -> list[str]:
    notebook = json.loads((DOCS / "notebooks" / "first_look.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("source", ["page", "notebook"])
def test_the_examples_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = re.search(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.S)
    assert page
    names: dict[str, Any] = {}
    for cell in [page[1]] if source == "page" else _cells():
        exec(cell, names)
    assert len(names["runs"]) == (2 if source == "page" else 6)
    assert set(names["drift"]["measurement"]) == {"drift_mean.pre"}
    assert (tmp_path / "curves.pdf").exists() == (source == "page")
