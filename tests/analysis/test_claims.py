"""Claims that could never be judged are refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab import config
from bnlab.analysis.claims import check, check_reach, unknown_metric
from bnlab.config.statements import studies
from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.core.study import Cell, Claim, Study
from bnlab.report.figures import check_figures


def study(*claims: Claim) -> Study:
    return Study(name="s", base="b", claims=claims)


STEPS_TO = {"of": "train_loss", "target": 0.5, "smooth": 3}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metric": "final_los"}, r"^claims.lower_loss.metric: no such metric, got 'final_los'. Did you mean: final_"),
        (
            {"metric": "seed_spread", "compare": "difference", "options": {"of": "final_los", "log": True}},
            r"^claims.lower_loss.options.of: no such metric, got 'final_los'",
        ),
        ({"options": {"target": 1}}, r"claims.lower_loss.options.target: no such option, got 1"),
        ({"metric": "steps_to", "options": {"target": 0.2}}, r"claims.lower_loss.options.of: missing"),
        ({"metric": "steps_to", "options": STEPS_TO | {"smooth": 0}}, r"options.smooth: must be at least 1, got 0"),
        (
            {"metric": "steps_to", "options": STEPS_TO | {"target": "best"}},
            r"options.target: must be a number or be 'control', got 'best'",
        ),
        (
            {"metric": "steps_to", "options": STEPS_TO | {"target": "control"}, "contrast": {}, "against": 10},
            r"options.target: only a claim with a contrast of runs has one, got 'control'. Give a number.",
        ),
        (
            {
                "metric": "slope",
                "at": "curve",
                "options": {
                    "of": "steps_to",
                    "of_options": STEPS_TO | {"target": "control"},
                    "factor": "model.depth",
                    "log": "xy",
                },
            },
            r"options.of_options.target: only a claim with a contrast of runs has one, got 'control'",
        ),
        ({"metric": "max_stable_lr"}, r"at: max_stable_lr is a metric of a curve, got 'best_lr'. Write at: curve."),
        ({"at": "curve"}, r"at: final_train_loss is a metric of a run, got 'curve'. Write at: matched_lr or best_lr."),
        (
            {"at": "matched_loss"},
            r"at: final_train_loss has no value at a step, got 'matched_loss'. These have: .*loss_range",
        ),
        (
            {"beyond": {"norm": ("layer", "none")}, "contrast": {}, "against": 1.0},
            r"beyond: needs a contrast of runs to be beyond, got",
        ),
        (
            {"metric": "max_stable_lr", "at": "curve", "contrast": {}, "against": "theory.gradient_growth"},
            r"against: has a value for each run, and a curve has many, got 'theory.gradient_growth'",
        ),
        (
            {
                "metric": "course",
                "options": {"of": "act_men.pre", "sites": "hidden", "window": [0, 1], "over": "median"},
            },
            r"options.of: no such measurement, got 'act_men.pre'. Did you mean: act_mean",
        ),
        (
            {
                "metric": "slope",
                "at": "curve",
                "options": {"of": "final_los", "of_options": {}, "factor": "model.depth", "log": "xy"},
            },
            r"options.of: no such metric, got 'final_los'",
        ),
        (
            {
                "metric": "correlation",
                "at": "curve",
                "options": {"of": "trains", "of_options": {}, "to": "slope", "to_options": {}, "factor": "model.depth"},
            },
            r"options.to_options.of: missing",
        ),
        (
            {
                "metric": "correlation",
                "at": "curve",
                "options": {
                    "of": "trains",
                    "of_options": {},
                    "to": "max_stable_lr",
                    "to_options": {},
                    "factor": "model.depth",
                },
            },
            r"options.to: must be a metric of a run, got 'max_stable_lr'",
        ),
        ({"smallest_effect": 0}, r"smallest_effect: a ratio must be above 0, got 0. 2 means twice as much."),
        ({"smallest_effect": None}, r"smallest_effect: missing. It says which effect matters."),
        ({"within": 1.1}, r"within: has no meaning with expect: larger|smaller, got 1.1"),
        ({"expect": "same"}, r"smallest_effect: has no meaning with expect: same, got"),
        ({"expect": "same", "smallest_effect": None, "within": 1.0}, r"within: a ratio must be above 1, got 1"),
        ({"against": 1.0}, r"^claims.lower_loss: must have either contrast or against, got"),
        ({"contrast": {}}, r"^claims.lower_loss: must have either contrast or against, got"),
        (
            {"contrast": {}, "against": "theory.gradient_grwth"},
            r"against: must be a number or a formula, got 'theory.gradient_grwth'. Formulas: theory.gradient_growth",
        ),
        (
            {"contrast": {"metric": ("best_train_loss", "final_test_loss")}},
            r"contrast: must be of metrics alone, the claim's own first",
        ),
        (
            {"contrast": {"metric": ("final_train_loss", "steps_to")}},
            r"contrast.metric: must be a metric of a run without options, got 'steps_to'",
        ),
        (
            {"metric": "loss_range", "contrast": {"metric": ("loss_range", "grad_change")}, "at": "matched_loss"},
            r"at: needs two arms, got 'matched_loss'",
        ),
        ({"metric": "trains", "at": "matched_lr"}, r"at: compares only runs that train, got 'matched_lr'"),
        ({"contrast": {"norm.name": ("batch", "none")}}, r"contrast: no such axis, got 'norm.name'. Write norm."),
        ({"contrast": {"seed": ([0, 1], [2])}}, r"contrast.seed: two lists of unequal length"),
        (
            {"metric": "seed_spread", "options": {"of": "final_train_loss", "log": True}},
            r"compare: seed_spread may be 0, got 'ratio'. Write compare: difference.",
        ),
        (
            {"metric": "seed_spread", "compare": "difference", "options": {"of": "max_stable_lr", "log": True}},
            r"options.of: must be a metric of a run without options, got 'max_stable_lr'",
        ),
    ],
)
def test_refused(changes: Mapping[str, Any], match: str, claim_of: Callable[..., Claim]) -> None:
    with pytest.raises(UsageError, match=match):
        check(study(claim_of(**changes)))


@pytest.mark.parametrize(
    ("changes", "typed", "match"),
    [
        ({}, (), None),
        ({"where": {"seed": 1}}, (), None),
        ({"contrast": {"seed": ([0], [1])}}, (), None),
        (
            {"contrast": {"nrom": ("batch", "none")}},
            (),
            r"^claims.lower_loss.contrast: no run .*, got 'nrom'. .*norm",
        ),
        (
            {"where": {"model.dpeth": 3}},
            (),
            r"^claims.lower_loss.where: no run .*, got 'model.dpeth'. .*model.depth",
        ),
        (
            {"where": {"nrom": 3}},
            ("nrom",),
            r"^claims.lower_loss.where: no run .* such a key, got 'nrom'",
        ),
        (
            {"contrast": {"norm": ("batch", "layer")}},
            (),
            r"""^claims.lower_loss.contrast.norm: no run .* value, got 'layer'. Its runs have: "batch", "none".$""",
        ),
        ({"contrast": {"norm": ("batch", "layer")}}, ("norm",), None),
        ({"where": {"seed": 7}}, (), r"^claims.lower_loss.where.seed: no run of this study has this value, got 7"),
        ({"contrast": {"seed": ([0], [7])}}, (), r"^claims.lower_loss.contrast.seed: no run .* value, got 7"),
    ],
)
def test_a_claim_about_arms_that_the_grid_lacks_is_refused(
    changes: Mapping[str, Any],
    typed: tuple[str, ...],
    match: str | None,
    claim_of: Callable[..., Claim],
    spec_of: Callable[..., RunSpec],
) -> None:
    made = study(claim_of(**changes))
    specs = [spec_of(f"norm={norm}", f"seed={seed}") for norm in ("batch", "none") for seed in (0, 1)]
    cells = [Cell(spec=spec, config="b", overrides=(), values={}) for spec in specs]
    if match is None:
        check_reach(made, cells, typed)
    else:
        with pytest.raises(UsageError, match=match):
            check_reach(made, cells, typed)


def test_what_can_be_judged_passes(claim_of: Callable[..., Claim]) -> None:
    check(
        study(
            claim_of(),
            claim_of(name="b", metric="max_stable_lr", at="curve"),
            claim_of(name="c", metric="steps_to", options=STEPS_TO),
            claim_of(name="d", metric="loss_range", at="matched_loss"),
            claim_of(name="e", contrast={"seed": ([0, 1], [2, 3])}, compare="difference", smallest_effect=0),
        )
    )


def test_the_claims_of_the_documentation_can_be_judged() -> None:
    text = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    tree = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    documented = Study.from_tree({"name": "s", "base": "b", **tree})
    assert [claim.at for claim in documented.claims] == ["curve", "best_lr", "best_lr", "every_run"]
    check(documented)


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name, study in studies().items() for scale in study.scales],
)
def test_the_other_sizes_of_a_study_have_what_its_claims_are_about(name: str, scale: str) -> None:
    study, cells = config.load_study(name, [f"scale={scale}"])
    assert study.name == f"{name}-{scale}"
    check(study)
    check_reach(study, cells, {"scale"})
    check_figures(study, cells, {"scale"})


WITHOUT_A_PAPER_S_SETTING = {
    *("batch_noise", "channels", "colours", "convergence", "cost", "covariate_shift", "discrepancy", "dyt"),
    *("equilibrium", "full_batch", "generalization", "inference_statistics", "information", "init_sensitivity"),
    *("input_noise", "isometry", "learned", "lr_range", "margins", "memory", "negative_control", "one_cluster"),
    *("orthogonality", "placement", "prices", "propagation", "quickstart", "regularization", "residual_gradients"),
    *("separable", "shattered_gradients", "shuffle_once", "tiny_batch"),
}
"""Studies of the notes, of our own questions, of papers on ImageNet or transformers, or read as abstracts alone."""


def test_every_study_has_the_setting_of_its_paper_or_says_why_not() -> None:
    assert {name for name, study in studies().items() if "paper" not in study.scales} == WITHOUT_A_PAPER_S_SETTING
    folder = Path(__file__).parents[2] / "configs" / "studies"
    for name in studies():
        said = re.search(r"^# No paper's setting: .+\.$", (folder / f"{name}.yaml").read_text("utf-8"), re.M | re.S)
        assert bool(said) == (name in WITHOUT_A_PAPER_S_SETTING), name


@pytest.mark.parametrize(
    ("metric", "options", "unknown"),
    [
        ("mine", {}, "mine"),
        ("seed_spread", {"of": "mine"}, "mine"),
        ("slope", {"of": "mine", "of_options": {}, "factor": "model.depth", "log": "xy"}, "mine"),
        ("correlation", {"of": "trains", "of_options": {}, "to": "mine", "to_options": {}, "factor": "x"}, "mine"),
        ("growth_fit", {"of": "grad_norm", "window": [0, 1], "skip_first": 0, "skip_last": 0}, None),
    ],
)
def test_a_metric_of_a_plugin_that_is_not_there_is_found_wherever_a_claim_names_it(
    metric: str, options: dict[str, Any], unknown: str | None, claim_of: Callable[..., Claim]
) -> None:
    assert unknown_metric(claim_of(metric=metric, options=options)) == unknown
