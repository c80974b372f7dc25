"""Figures that a study asks for, and that of its verdicts: their numbers against values worked out by hand."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bnlab import config
from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import read_runs
from bnlab.cli import main
from bnlab.core.errors import UsageError
from bnlab.core.study import Claim, Study
from bnlab.core.theory import gradient_growth
from bnlab.record.runs import Run
from bnlab.report.build import build
from bnlab.report.figures import FIGURES, check_figures, forest
from bnlab.report.prepare import prepare
from bnlab.report.views import Drawn, Missing, View, interval
from bnlab.report.write import styled, table

Write = Callable[..., Path]
MakeRun = Callable[..., Run]
Make = Callable[..., View]
LOSSES = {("none", 8): 0.4, ("none", 64): 0.2, ("batch", 8): 0.8, ("batch", 64): 0.05}


@pytest.fixture(autouse=True)
def _style() -> Any:
    with styled():
        yield


def rows_of(drawn: Drawn, **wanted: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(table(drawn))))
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def asked(root: Path, *figures: Mapping[str, Any], claims: Sequence[Mapping[str, Any]] = ()) -> None:
    """Put a study with these figures over the runs."""
    tree = {"name": root.name, "base": "deep_mlp", "figures": list(figures), "claims": list(claims)}
    (root / "study.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def sizes(tmp_path: Path, write: Write) -> Path:
    """Two norms, two batch sizes, two rates, four seeds; rate 1 is twice as bad as 0.1."""
    for (norm, size), loss in LOSSES.items():
        for lr, seed in ((lr, seed) for lr in (0.1, 1.0) for seed in range(4)):
            worse = 2 if lr == 1.0 else 1
            spec = {"data.batch_size": size}
            write(tmp_path / "sizes", norm=norm, lr=lr, seed=seed, loss=loss * worse * (1 + 0.1 * seed), spec=spec)
    return tmp_path / "sizes"


# -- a metric against an axis ----------------------------------------------------------------------------------------


def test_each_arm_is_at_its_best_rate_for_every_value_of_the_axis(sizes: Path) -> None:
    (view,) = axis_view(sizes, "data.batch_size")
    options = {"by": "data.batch_size", "metric": "final_train_loss", "log": "xy", "reference": 0.1}
    rows = rows_of(FIGURES["by"].constructor(view, "x", **options))
    assert len(rows) == 16
    for (norm, size), loss in LOSSES.items():
        arm = {"none": "no norm", "batch": "batch norm"}[norm]
        here = [row for row in rows if (row["arm"], row["data.batch_size"]) == (arm, str(size))]
        values = [loss * (1 + 0.1 * seed) for seed in range(4)]
        assert [float(row["final_train_loss"]) for row in here] == pytest.approx(values)
        assert {row["lr"] for row in here} == {"0.1"}
        assert float(here[0]["mean"]) == pytest.approx(math.exp(np.log(values).mean()))
        ends = interval(values, True)
        assert ends is not None
        assert (float(here[0]["low_95"]), float(here[0]["high_95"])) == pytest.approx(ends)
        assert here[0]["reference"] == "0.1"


def test_its_title_compares_the_arms_at_both_ends(sizes: Path) -> None:
    (view,) = axis_view(sizes, "data.batch_size")
    by = FIGURES["by"].constructor
    found = by(view, "x", by="data.batch_size", metric="final_train_loss", log="y")
    assert found.title == "Final train loss: 2× higher with batch norm at batch size 8, 4× lower at batch size 64"
    linear = by(view, "x", by="data.batch_size", metric="final_train_loss")
    assert linear.title == "Final train loss: 0.46 higher with batch norm at batch size 8, 0.17 lower at batch size 64"
    assert "Mean of 4 seeds" in linear.note


def axis_view(root: Path, by: str, **where: Any) -> tuple[View, ...]:
    asked(root, {"kind": "by", "by": by, "metric": "final_train_loss", "where": where})
    return prepare(read_runs(root)).asked[0].views


def test_every_run_is_the_mean_over_rates(sizes: Path) -> None:
    (view,) = axis_view(sizes, "data.batch_size")
    found = FIGURES["by"].constructor(view, "x", by="data.batch_size", metric="final_train_loss", at="every_run")
    first = rows_of(found, arm="no norm", seed="0", **{"data.batch_size": "8"})[0]
    assert float(first["final_train_loss"]) == pytest.approx((0.4 + 0.8) / 2)
    assert first["lr"] == ""


def test_rates_on_the_axis_are_not_chosen(sizes: Path) -> None:
    (view,) = axis_view(sizes, "optim.lr", **{"data.batch_size": 8})
    found = FIGURES["by"].constructor(view, "x", by="optim.lr", metric="final_train_loss", log="xy")
    assert [row["final_train_loss"] for row in rows_of(found, arm="no norm", seed="0")] == ["0.4", "0.8"]


def test_arms_stand_beside_each_other(sizes: Path) -> None:
    (view,) = axis_view(sizes, "arm", **{"data.batch_size": 64})
    found = FIGURES["by"].constructor(view, "x", by="arm", metric="final_train_loss", log="y")
    assert found.columns[:3] == ("arm", "lr", "seed")
    assert {row["arm"] for row in rows_of(found)} == {"no norm", "batch norm"}
    assert found.title == "Final train loss: 4× lower with batch norm"
    (same,) = axis_view(sizes, "norm", **{"data.batch_size": 64})
    again = FIGURES["by"].constructor(same, "x", by="norm", metric="final_train_loss", log="y")
    assert table(again) == table(found)


def test_an_axis_of_the_study_that_is_not_drawn_makes_a_figure_for_each_value(sizes: Path) -> None:
    assert [view.setting for view in axis_view(sizes, "arm")] == ["batch size 8", "batch size 64"]


def test_the_title_says_of_which_sites_and_when(run_of: MakeRun, view: Make) -> None:
    def arm(factor: float) -> list[Run]:
        spec = [{"data.batch_size": size} for size in (8, 64)]
        rows = [[factor, factor, 9.0]] * 3
        return [run_of(seed=seed, spec=one, my__x=([0, 20, 40], rows)) for seed in range(3) for one in spec]

    arms = view({"no norm": arm(1.0), "batch norm": arm(2.0)})

    def title(**changes: Any) -> str:
        options = {"of": "my.x", "sites": "last", "window": [0, 0], "over": "median"} | changes
        where = {"by": "data.batch_size", "metric": "course", "log": "y"}
        return FIGURES["by"].constructor(arms, "x", options=options, **where).title.partition(":")[0]

    assert title() == "my.x at step 0, last hidden site"
    assert title(sites=[0, 1], window=[0.9, 1]) == "my.x in the last 10 % of the run, sites 0 and 1"
    assert title(sites="hidden", window=[0, 1], over="max") == ("my.x, largest over steps, median over hidden sites")


def test_a_ratio_that_rounds_to_one_is_no_difference(run_of: MakeRun, view: Make) -> None:
    def arm(losses: tuple[float, float]) -> list[Run]:
        sizes = zip((8, 64), losses, strict=True)
        return [run_of(seed=s, loss=x, spec={"data.batch_size": size}) for size, x in sizes for s in range(3)]

    arms = view({"no norm": arm((1.0, 1.0)), "batch norm": arm((1.002, 3.0))})
    found = FIGURES["by"].constructor(arms, "x", by="data.batch_size", metric="final_train_loss", log="y")
    assert found.title == (
        "Final train loss: no clear difference at batch size 8, 3× higher with batch norm at batch size 64"
    )


def test_a_formula_is_a_dotted_line_of_the_runs_own_settings(sizes: Path) -> None:
    (view,) = axis_view(sizes, "data.batch_size")
    options = {"by": "data.batch_size", "metric": "final_train_loss", "reference": "theory.gradient_growth"}
    found = FIGURES["by"].constructor(view, "x", **options)
    for size in (8, 64):
        rows = rows_of(found, **{"data.batch_size": str(size)})
        assert [float(row["reference"]) for row in rows] == pytest.approx([gradient_growth(size, "relu")] * 8)


def test_no_line_goes_through_values_that_are_missing_or_bounds(run_of: MakeRun, view: Make) -> None:
    here, there = {"data.batch_size": 8}, {"data.batch_size": 16}
    runs = [run_of(0.1, seed, spec=spec, train_loss=[2.0, 1.0]) for seed in range(3) for spec in (here, there)]
    runs += [run_of(0.1, 3, spec=there, train_loss=[2.0, 0.1]), run_of(0.1, 3, spec=here, train_loss=[2.0, 0.1])]
    target = {"of": "train_loss", "target": 0.5, "smooth": 1}
    found = FIGURES["by"].constructor(view({"a": runs}), "x", by="data.batch_size", metric="steps_to", options=target)
    rows = rows_of(found, **{"data.batch_size": "8"})
    assert [(row["steps_to"], row["bound"]) for row in rows] == [("40", "at least")] * 3 + [("1", "")]
    assert {row["mean"] for row in rows} == {""}
    assert "Arrows: at least, or at most, this." in found.note


# -- over steps and layers -------------------------------------------------------------------------------------------


@pytest.fixture
def courses(run_of: MakeRun, view: Make) -> View:
    """Two hidden sites and the head; batch norm has a tenth of it. Values of seed s are 1 + s times as large."""

    def runs(factor: float) -> list[Run]:
        values = [[factor * (step + 1) * layer for layer in (1.0, 4.0, 100.0)] for step in range(5)]
        spec = {"data.batch_size": 64, "model.activation": "relu"}
        return [run_of(0.1, seed, my__x=np.array(values) * (1 + seed), spec=spec) for seed in range(3)]

    return view({"no norm": runs(1.0), "batch norm": runs(0.1)})


def test_steps_are_the_median_of_the_seeds_with_the_smallest_and_the_largest(courses: View) -> None:
    found = FIGURES["steps"].constructor(courses, "x", of="my.x", log="y", reference=1)
    rows = rows_of(found, arm="no norm")
    assert [float(row["step"]) for row in rows] == [0, 1, 2, 3, 4]
    # The median of the hidden sites 1 and 4 is 2.5, that of the seeds 1, 2 and 3 is 2.
    assert [float(row["median"]) for row in rows] == pytest.approx([2.5 * 2 * (step + 1) for step in range(5)])
    assert [float(row["smallest"]) for row in rows] == pytest.approx([2.5 * (step + 1) for step in range(5)])
    assert [float(row["largest"]) for row in rows] == pytest.approx([7.5 * (step + 1) for step in range(5)])
    assert found.title == "my.x, median over hidden sites, mean over steps: 10× lower with batch norm"


@pytest.mark.parametrize(("sites", "times"), [("first", 1), ("last", 4), ("all", 4), ([2], 100), ([0, 1], 2.5)])
def test_steps_are_those_of_the_sites_that_are_asked_for(courses: View, sites: Any, times: float) -> None:
    found = FIGURES["steps"].constructor(courses, "x", of="my.x", sites=sites)
    assert float(rows_of(found, arm="no norm")[0]["median"]) == pytest.approx(2 * times)


def test_a_profile_is_the_median_over_a_window_of_the_run(courses: View) -> None:
    # A run has 40 steps: all five measured ones are in its first tenth, the last two in (0.07, 0.1).
    found = FIGURES["profile"].constructor(courses, "x", of="my.x", window=[0, 0.1], log="y")
    rows = rows_of(found, arm="no norm")
    assert [float(row["layer"]) for row in rows] == [0, 1]
    assert [float(row["median"]) for row in rows] == pytest.approx([2 * 3, 2 * 3 * 4])
    assert found.title == (
        "my.x in the first 10 % of the run grows 4× a layer with batch norm, grows 4× a layer with no norm"
    )
    start = FIGURES["profile"].constructor(courses, "x", of="my.x", window=[0, 0])
    assert [float(row["median"]) for row in rows_of(start, arm="no norm")] == pytest.approx([2, 8])
    assert "step 0" in start.note
    assert start.title == (
        "my.x at step 0: from 0.2 in the first layer to 0.8 in the last with batch norm; from 2 to 8 with no norm"
    )


@pytest.mark.parametrize("kind", ["steps", "profile"])
def test_what_was_not_measured_is_not_drawn(courses: View, kind: str) -> None:
    with pytest.raises(Missing, match=r"no other in the journals at a learning rate of 0\.1"):
        FIGURES[kind].constructor(courses, "x", of="other")
    with pytest.raises(Missing, match=r"no my\.x in the journals at a learning rate of 7"):
        FIGURES[kind].constructor(courses, "x", of="my.x", lr=7.0)


# -- in a report -----------------------------------------------------------------------------------------------------


def test_figures_of_the_study_come_first_in_its_order_under_names_of_their_own(tmp_path: Path, write: Write) -> None:
    root, journal = tmp_path / "g", [{"step": step, "train_loss": 1.0 / (1 + step)} for step in range(9)]
    for norm, lr in ((norm, lr) for norm in ("none", "batch") for lr in (0.1, 1.0)):
        write(root, norm=norm, lr=lr, journal=journal)
    claim = {
        "name": "c",
        "text": "t",
        "source": "s",
        "metric": "final_train_loss",
        "against": 1.0,
        "where": {"norm": "none"},
    }
    claim |= {"at": "best_lr", "expect": "larger", "compare": "ratio", "smallest_effect": 2}
    steps = {"kind": "steps", "of": "train_loss", "log": "y"}
    others = [{"kind": "by", "by": "arm", "metric": "final_train_loss"}, {"kind": "by", "by": "arm", "metric": "steps"}]
    asked(root, steps, *others, {**steps, "lr": 0.1}, {**steps, "where": {"optim.lr": 7}}, claims=[claim])
    built = build(root)
    first = ("forest", "steps-train_loss", "by-final_train_loss-arm", "steps-train_loss-3", "loss_by_rate")
    assert built.figures[:5] == first
    text = (root / "figures" / "steps-train_loss-3.csv").read_text(encoding="utf-8")
    assert {row["lr"] for row in csv.DictReader(io.StringIO(text))} == {"0.1"}
    assert any("no such metric" in line for line in built.failed)
    assert "no run is as figures.4.where says" in built.path.read_text(encoding="utf-8")


# -- what is refused -------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"kind": "by", "by": "norm", "metric": "final_train_loss"}


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"by": "norm"}, "figures.0.kind: missing. Write kind: by, map, steps, profile or layers."),
        ({"kind": "bye"}, "figures.0.kind: no such kind of figure, got 'bye'. Did you mean: by?"),
        ({"kind": "landscape"}, "figures.0.kind: no such kind of figure, got 'landscape'."),
        ({**GOOD, "metrik": 1}, "figures.0.metrik: no such option, got 1. Did you mean: metric?"),
        ({"kind": "by", "by": "norm"}, "figures.0.metric: missing."),
        ({**GOOD, "metric": "final_los"}, "figures.0.metric: no such metric, got 'final_los'. Did you mean:"),
        ({**GOOD, "metric": "max_stable_lr"}, "figures.0.metric: must be a metric of a run; this is one of a curve"),
        ({**GOOD, "options": {"x": 1}}, "figures.0.options.x: no such option, got 1."),
        (
            {**GOOD, "metric": "steps_to", "options": {"of": "test_loss", "target": "control", "smooth": 1}},
            "figures.0.options.target: only a claim with a contrast of runs has one, got 'control'. Give a number.",
        ),
        ({**GOOD, "log": "z"}, "figures.0.log: must be 'xy', 'x', 'y' or 'none', got 'z'."),
        ({**GOOD, "by": "data.batchsize"}, "figures.0.by: no run of this study has such a key, got 'data.batchsize'."),
        ({**GOOD, "reference": "theory.x"}, "figures.0.reference: must be a number or a formula, got 'theory.x'."),
        (
            {**GOOD, "where": {"norm": "layer"}},
            "figures.0.where.norm: no run of this study has this value, got 'layer'",
        ),
        ({**GOOD, "where": 3}, "figures.0.where: must have keys and values, got 3."),
        ({"kind": "steps", "of": "train_los"}, "figures.0.of: no such measurement, got 'train_los'. Did you mean:"),
        (
            {"kind": "steps", "of": "train_loss", "lr": 7.0},
            "figures.0.lr: no run of this study has this value",
        ),
        ({"kind": "profile", "of": "delta_norm", "window": [0, 2]}, "figures.0.window: must be at most 1"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_one_line_before_the_first_run(figure: dict[str, Any], said: str) -> None:
    _, cells = config.load_study("quickstart", ["seed=0"])
    study = Study.from_tree({"name": "s", "base": "deep_mlp", "figures": [figure]})
    with pytest.raises(UsageError) as refused:
        check_figures(study, cells)
    assert str(refused.value).startswith(said)


def test_the_figures_in_the_docs_are_accepted() -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    figures = yaml.safe_load(text.split("```yaml\nfigures:\n")[1].split("```")[0])
    _, cells = config.load_study("quickstart", ["seed=0"])
    check_figures(Study(name="s", base="deep_mlp", figures=tuple(figures)), cells, {"optim.lr", "data.batch_size"})


def test_the_command_refuses_it_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "studies").mkdir()
    tree = {"base": "deep_mlp", "axes": {"norm": "none,batch"}, "figures": [{**GOOD, "log": "z"}]}
    (tmp_path / "studies" / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["sweep", "--config", "mine", "--config-dir", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert "figures.0.log: must be" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# -- the verdicts ----------------------------------------------------------------------------------------------------


def verdict(name: str, compare: str, **more: Any) -> Verdict:
    claim = {"expect": "larger", "smallest_effect": 2.0, "text": "t", "source": "s", "metric": "m", "at": "best_lr"}
    claim |= {key: more.pop(key) for key in ("expect", "smallest_effect", "within") if key in more}
    made = Claim(name=name, compare=compare, against=1.0, **claim)  # type: ignore[arg-type]
    return Verdict(claim=made, why="", n=8, **({"decision": "supported"} | more))


def test_a_forest_has_a_row_a_claim_ratios_above_differences() -> None:
    same = {"expect": "same", "smallest_effect": None, "within": 1.25}
    found = forest.draw(
        [
            verdict("wide", "ratio", effect=4.0, interval=(3.0, 1e9)),
            verdict(
                "more", "difference", effect=0.5, interval=(-1.0, 2.0), decision="inconclusive", smallest_effect=0.1
            ),
            verdict("equal", "ratio", effect=1.1, interval=(1.0, 1.2), **same),
            verdict("none", "ratio", decision="not tested"),
        ],
        "forest",
    )
    assert found.title == "Of 4 claims: 2 supported, 1 inconclusive and 1 not tested"
    rows = rows_of(found)
    assert [row["claim"] for row in rows] == ["wide", "more", "equal", "none"]
    assert [(row["effect"], row["low_95"], row["high_95"]) for row in rows[1:]] == [
        ("0.5", "-1", "2"),
        ("1.1", "1", "1.2"),
        ("", "", ""),
    ]
    assert [(row["smallest_effect"], row["within"]) for row in rows[:3]] == [("2", ""), ("0.1", ""), ("", "1.25")]
    ratios, differences = found.figure.axes
    assert (ratios.get_xscale(), differences.get_xscale()) == ("log", "linear")
    assert ratios.get_xlim()[1] < 100  # the interval up to 1e9 ends in an arrow
    texts = [text.get_text() for text in ratios.texts]
    assert {"Wide", "✓", "4×", "·"} <= set(texts)


def test_a_forest_of_claims_that_were_not_tested_is_not_drawn() -> None:
    with pytest.raises(Missing, match=r"no claim was tested"):
        forest.draw([verdict("none", "ratio", decision="not tested")], "forest")


def test_one_claim_is_named_by_its_verdict() -> None:
    assert forest.headline([verdict("a", "ratio", decision="refuted")]) == "The claim is refuted"
    assert forest.headline([verdict(n, "ratio", decision="direction only") for n in "ab"]) == (
        "All 2 claims have a direction only"
    )
