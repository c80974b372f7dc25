"""Which arms there are, what they are called, and which command made a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import read_runs
from bnlab.core.study import Study
from bnlab.report.page import line
from bnlab.report.prepare import prepare

Write = Callable[..., Path]
STUDY = {
    "name": "s",
    "base": "deep_mlp",
    "overrides": {"steps": 40},
    "axes": {"norm": "none,batch", "optim.lr": "0.1,1"},
}


def test_arms_are_norms_with_the_control_first(grid: Path) -> None:
    (view,) = prepare(read_runs(grid)).views
    assert [group.label for group in view.groups] == ["no norm", "batch norm"]
    assert view.pair == (view.groups[1], view.groups[0])
    assert (view.rates, view.seeds) == ([0.01, 0.1, 1.0], [0, 1, 2])
    assert len({group.look.marker for group in view.groups}) == 2


def test_an_option_of_one_norm_alone_does_not_make_an_arm(tmp_path: Path, write: Write) -> None:
    write(tmp_path, norm="ghost_batch", spec={"norm.ghost_size": 16})
    write(tmp_path, norm="none")
    assert prepare(read_runs(tmp_path)).order == ("no norm", "ghost batch norm")


def test_two_settings_of_one_norm_are_two_arms(tmp_path: Path, write: Write) -> None:
    for size in (16, 32):
        write(tmp_path, norm="ghost_batch", spec={"norm.ghost_size": size})
    write(tmp_path, norm="none")
    assert prepare(read_runs(tmp_path)).order == (
        "no norm",
        "ghost batch norm, ghost size 16",
        "ghost batch norm, ghost size 32",
    )


CLAIM = {"name": "c", "text": "c", "source": "c", "contrast": {"norm": ["batch", "none"]}, "expect": "smaller"}
CLAIM |= {"compare": "ratio", "smallest_effect": 1}
GOAL = {"of": "train_loss", "target": 0.2, "smooth": 3}


@pytest.mark.parametrize(
    ("claim", "ratios"),
    [
        ({"metric": "steps_to", "at": "best_lr", "options": GOAL}, {"steps_to": 0.25}),
        ({"metric": "steps_to", "at": "best_lr", "options": GOAL | {"of": "test_accuracy"}}, {}),
        ({"metric": "steps_to", "at": "matched_lr", "options": GOAL}, {}),
        ({"metric": "final_train_loss", "at": "best_lr"}, {"final_train_loss": 0.25}),
        ({"metric": "final_train_loss", "at": "matched_lr"}, {}),
        ({"metric": "drift_pre", "at": "matched_lr"}, {"drift_pre": 0.25}),
        ({"metric": "drift_pre", "at": "matched_lr", "expect": "larger"}, {"drift_pre": 4.0}),
        ({"metric": "drift_pre", "at": "matched_lr", "where": {"optim.lr": 0.1}}, {}),
        ({"metric": "drift_pre", "at": "matched_lr", "compare": "difference"}, {}),
        ({"metric": "drift_pre", "at": "matched_lr", "contrast": {"norm": ["none", "batch"]}}, {}),
        ({"metric": "max_stable_lr", "at": "curve", "contrast": {"optim.lr": [1, 2]}}, {}),
    ],
)
def test_a_title_repeats_a_claim_that_measures_the_same_alone(
    claim: dict[str, Any], ratios: dict[str, float], grid: Path
) -> None:
    first = {**CLAIM, "name": "first", "metric": "drift_post", "at": "matched_lr"}  # which makes the pair
    study = Study.from_tree({"name": "s", "base": "b", "claims": [first, {**CLAIM, **claim}]})
    verdict = Verdict(claim=study.claims[1], decision="supported", effect=4.0, why="made up")
    (view,) = prepare(replace(read_runs(grid), study=study), [verdict]).views
    assert view.ratios == ratios


def test_further_axes_make_further_views(tmp_path: Path, write: Write) -> None:
    for depth in range(2, 7):
        for norm in ("none", "batch"):
            write(tmp_path, norm=norm, spec={"model.depth": depth})
    found = prepare(read_runs(tmp_path))
    assert [view.setting for view in found.views] == ["depth 2", "depth 4", "depth 6"]
    assert len(found.order) == 10
    assert found.left_out[0].startswith("figures for 3 of 5 settings of depth")
    line = "the runs have 5 settings of depth, and figures are drawn for 3; of some runs alone: bnlab plot"
    assert found.mixed.startswith(line)


def test_where_the_norm_does_not_vary_what_varies_makes_the_arms(tmp_path: Path, write: Write) -> None:
    for size in (128, 16):
        write(tmp_path, spec={"data.batch_size": size})
    (view,) = prepare(read_runs(tmp_path)).views
    assert [group.label for group in view.groups] == ["batch size 16", "batch size 128"]


def test_of_runs_that_differ_in_probes_alone_one_is_drawn(tmp_path: Path, write: Write) -> None:
    write(tmp_path, journal=[{"step": 0, "train_loss": 1.0}])
    rich = write(tmp_path, spec={"probes.points": 7})
    (view,) = prepare(read_runs(tmp_path)).views
    assert [run.path for run in view.groups[0].runs] == [rich]


def test_a_run_tells_the_command_that_made_it(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "quick", argv=["bnlab", "train", "--config", "deep_mlp", "norm=batch", "--runs", "x", "--plain"])
    (run,) = read_runs(tmp_path).runs
    assert line(run, None) == "bnlab train --config deep_mlp norm=batch name=quick"


def test_a_run_of_a_grid_has_its_own_values_in_the_place_of_axes(tmp_path: Path, write: Write) -> None:
    words = ["bnlab", "sweep", "--config=deep_mlp", "optim.lr=1e-3,0.1", "seed=range(0,6)", "steps=40"]
    write(tmp_path / "quick", lr=0.1, seed=4, argv=words)
    (run,) = read_runs(tmp_path).runs
    assert line(run, None) == "bnlab train --config deep_mlp optim.lr=0.1 seed=4 steps=40 name=quick"


def test_a_run_of_a_study_has_the_studys_base_and_overrides(tmp_path: Path, write: Write) -> None:
    root = tmp_path / "s"
    write(root, norm="none", lr=1.0, argv=["bnlab", "sweep", "--config", "s"])
    (root / "study.yaml").write_text(yaml.safe_dump(STUDY))
    collection = read_runs(root)
    assert line(collection.runs[0], collection.study) == (
        "bnlab train --config deep_mlp steps=40 norm=none optim.lr=1.0 name=s"
    )


def test_a_run_that_does_not_tell_its_experiment_has_no_command(grid: Path) -> None:
    silent = SimpleNamespace(provenance={}, spec={}, path=Path("a/b/c/d"))
    assert line(silent, None) is None  # type: ignore[arg-type]
