"""A reading of one run: each rule on runs that have its illness and on runs that do not, and its arithmetic by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnlab import config
from bnlab.record.findings import BEFORE, FEWEST, GROWN, MOST, NOTHING, READS, RULES, Finding, findings
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal
from bnlab.record.runs import Run, read_run
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

SMALL = ("model.depth=4", "model.width=32", "steps=40")
EVERY = ("probes.activations.every=1",)
OF_RULE = {rule.name: rule for rule in RULES}


def trained(folder: Path, experiment: str, *overrides: str, change: Callable[[Setup], None] | None = None) -> Run:
    setup = assemble(config.load(experiment, overrides))
    if change:
        with torch.no_grad():
            change(setup)
    train(setup, RunFolder(folder))
    return read_run(RunFolder(folder))


def named(run: Run) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings(run)}


# -- illnesses -------------------------------------------------------------------------------------


def without_biases(setup: Setup) -> None:
    """Every unit of the second layer is below 0 for every example."""
    setup.net.module.get_parameter(setup.net.sites[1].params[1]).fill_(-100.0)


ILL: Mapping[str, tuple[str, ...]] = {
    "diverged": ("deep_mlp", "norm=none", "optim.lr=100", *SMALL),
    "chance": ("deep_mlp", "norm=none", "model.activation=sigmoid", "optim.lr=1e-3", *SMALL),
    "running_statistics": ("deep_mlp", "norm.momentum=1e-4", "optim.lr=0.1", "probes=bn_statistics", *SMALL),
    "dead": ("deep_mlp", "norm=none", "optim.lr=0.01", *SMALL),
    "saturated": ("deep_mlp", "norm=none", "model.activation=tanh", "model.init_scale=10", "probes=saturation", *SMALL),
    "gradient": ("deep_mlp", "norm=none", "model.activation=sigmoid", "model.init=glorot", "optim.lr=0.1", *SMALL),
    "update_ratio": ("deep_mlp", "norm=none", "optim.lr=1e-5", *SMALL),
    "edge": ("cohen_eos", "optim.lr=0.9", "steps=60", "data.subset=200", "probes.points=6"),
    "drift": ("deep_mlp", "norm=none", "optim=adam", "optim.lr=0.3", *SMALL, "model.activation=tanh", *EVERY),
}
"""By rule: a run that was made to have its illness. Whether a loss spikes by itself depends on the processor."""


@pytest.mark.parametrize("rule", ILL)
def test_a_run_with_an_illness_is_found_out(tmp_path: Path, rule: str) -> None:
    run = trained(tmp_path / "run", *ILL[rule], change=without_biases if rule == "dead" else None)
    found = named(run)
    assert rule in found
    assert found[rule].threshold == OF_RULE[rule].threshold
    assert found[rule].source == OF_RULE[rule].source
    assert found[rule].text.endswith(".")
    assert len(found) <= MOST


def test_every_rule_has_an_illness_here() -> None:
    assert set(ILL) | {"spikes"} == set(OF_RULE)


def test_a_net_with_batch_norm_explodes_at_initialization_as_the_theory_says(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "deep_mlp", "optim.lr=1e-4", "model.depth=24", "model.width=64", "steps=12")
    figures = named(run)["gradient"].figures
    assert figures["growth_per_layer"] == pytest.approx(figures["batch_norm_theory"], rel=0.05)
    assert "grows towards the input" in named(run)["gradient"].text


def test_too_large_a_rate_has_large_updates(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "deep_mlp", "optim=adam", "optim.lr=1", *SMALL[:2], "steps=12")
    assert named(run)["update_ratio"].figures["update_ratio"] > 3e-2
    assert named(run)["update_ratio"].text.startswith("Updates are large: ")


# -- no false alarm --------------------------------------------------------------------------------

WELL = {
    "batch norm": ("deep_mlp", "optim.lr=0.1", *SMALL[:2], "steps=200"),
    "no norm": ("deep_mlp", "norm=none", "optim.lr=0.05", *SMALL[:2], "steps=200"),
    "deep": ("deep_mlp", "steps=200"),
    "convolution": ("cnn_digits", "steps=150"),
    "sigmoid": ("mlp_digits", "steps=400"),
    "adam": ("deep_mlp", "optim=adam", "optim.lr=1e-3", *SMALL[:2], "steps=200"),
}
MORE = "+".join(("probes=economy", "bn_statistics", "saturation"))


@pytest.mark.parametrize("well", WELL)
def test_a_run_at_a_good_rate_has_nothing(tmp_path: Path, well: str) -> None:
    run = trained(tmp_path / "run", *WELL[well], MORE, "probes.bn_statistics.every=50", "probes.eval_points=1")
    assert run.trains
    (only,) = findings(run)
    assert only.name == NOTHING
    assert only.text.startswith("Nothing stands out: ")
    assert "no spikes of the loss" in only.text


# -- by hand ---------------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "seed": 0,
    "steps": 100,
    "norm": {"name": "none"},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False},
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "activation": "relu"},
    "probes": {"points": 100},
}
LAYERS = 13
"""Hidden ones: twelve steps from the last to the first."""


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Run]:
    """`made(train_loss=[...], delta_norm=[...])`: a run with these values at steps 0, 1, ...; `status` and `spec` (by
    dotted key) on top of a plain one. `__` stands for a dot."""

    def make(status: Mapping[str, Any] | None = None, spec: Mapping[str, Any] | None = None, **series: Any) -> Run:
        folder = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        folder.path.mkdir()
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in SPEC.items()}
        for key, value in (spec or {}).items():
            group, _, option = key.partition(".")
            tree[group][option] = value
        folder.write_spec(tree, {})
        metrics = {"train_loss": 0.1, "train_accuracy": 0.9}
        folder.write_status({"status": "finished", "step": 100, "steps": 100, "metrics": metrics} | dict(status or {}))
        series = {"train_loss": [2.0 * 0.9**step for step in range(60)]} | series
        journal = Journal(folder.journal_file)
        for step in range(max(map(len, series.values()))):
            row = {name.replace("__", "."): values[step] for name, values in series.items() if step < len(values)}
            journal.append({"step": step, **row})
        journal.close()
        return read_run(folder)

    return make


def by_layer(factor: float, steps: int = 60) -> list[list[float]]:
    """delta_norm that is `factor` times as large in each layer as in the one above it; then the head."""
    return [[0.5**step * factor ** (LAYERS - 1 - layer) for layer in range(LAYERS)] + [9.0] for step in range(steps)]


def level(*values: float | None) -> list[list[float | None]]:
    return [list(values)] * 60


def with_rise(rise: float) -> list[float]:
    """A loss that rises, once, by this share of the first above its level of 0.5."""
    return [2.0, 1.0, *[0.5] * 28, 0.5 + 2.0 * rise, *[0.5] * 29]


EDGES: dict[str, tuple[Callable[[float], dict[str, Any]], str]] = {
    "running_statistics": (lambda x: {"bn_mean_gap": level(x, 0.1, None)}, "bn_mean_gap"),
    "spikes": (lambda x: {"train_loss": with_rise(x)}, "rise"),
    "dead": (lambda x: {"dead_fraction": level(0.0, x, None)}, "dead_fraction"),
    "saturated": (lambda x: {"saturated_fraction": level(0.0, x, None)}, "saturated_fraction"),
    "gradient": (lambda x: {"delta_norm": by_layer(x)}, "growth_per_layer"),
    "update_ratio": (lambda x: {"update_ratio": level(1e-3 * x, 1e-3 * x, 5.0)}, "update_ratio"),
    "edge": (lambda x: {"eta_lambda_half": [4.0, 2.0, x, x, x]}, "eta_lambda_half"),
    "drift": (lambda x: {"drift_mean__pre": level(0.2 * x, 9.0), "sampling_floor__pre": level(0.2, 0.2)}, "drift"),
}
"""By rule: measurements at which its value is x, and the figure that has it."""
FULL = {"data.batch_size": "full"}


@pytest.mark.parametrize("rule", EDGES)
def test_a_rule_fires_above_its_threshold_and_not_below(made: Callable[..., Run], rule: str) -> None:
    measured, figure = EDGES[rule]
    threshold, spec = OF_RULE[rule].threshold, FULL if rule == "edge" else {}
    assert rule not in named(made(spec=spec, **measured(0.99 * threshold)))
    above = named(made(spec=spec, **measured(1.01 * threshold)))[rule]
    unit = {"update_ratio": 1e-3, "drift": 0.2}.get(rule, 1.0)
    assert above.figures[figure] == pytest.approx(1.01 * threshold * unit)


@pytest.mark.parametrize("rule", EDGES)
def test_a_rule_without_its_measurement_is_silent(made: Callable[..., Run], rule: str) -> None:
    run = made(train_loss=[2.0, 1.0, 0.5])
    assert OF_RULE[rule].read(run, OF_RULE[rule].threshold) is None


def test_a_rule_without_one_of_its_measurements_is_silent(made: Callable[..., Run]) -> None:
    assert "drift" not in named(made(drift_mean__pre=level(9.0, 9.0)))
    assert "update_ratio" not in named(made(train_loss=[], update_ratio=level(9.0, 9.0)))
    assert "running_statistics" in named(made(bn_mean_gap=level(0.2, None))), "a norm without a variance"


def test_what_a_rule_reads_is_read_with_the_rest_in_one_pass(made: Callable[..., Run]) -> None:
    for measured, _ in EDGES.values():
        assert {name.replace("__", ".") for name in measured(1.0)} <= READS


def test_a_shrinking_gradient_is_found_too(made: Callable[..., Run]) -> None:
    found = named(made(delta_norm=by_layer(1 / 1.3)))["gradient"]
    assert found.figures["growth_per_layer"] == pytest.approx(1 / 1.3)
    assert found.figures["total_growth"] == pytest.approx(1.3**-12)
    assert found.text == "The gradient shrinks towards the input by 1.3 per layer, 23.3 times from L12 to L00."


def test_a_gradient_that_changes_little_over_all_layers_does_not_stand_out(made: Callable[..., Run]) -> None:
    few = [[GROWN**0.99, 1.0, 1.0, 9.0]] * 60
    assert "gradient" not in named(made(delta_norm=few))
    assert "gradient" in named(made(delta_norm=[[GROWN**1.01, 1.0, 1.0, 9.0]] * 60))
    assert "gradient" not in named(made(delta_norm=[[100.0, 1.0, 9.0]] * 60)), "two hidden layers"


def test_the_theory_of_batch_norm_stands_beside_its_gradient(made: Callable[..., Run]) -> None:
    found = named(made(spec={"norm.name": "batch"}, delta_norm=by_layer(1.4)))["gradient"]
    assert found.figures["batch_norm_theory"] == pytest.approx(math.sqrt(1.493), rel=1e-3)
    assert "a wide random net with batch norm has 1.22 (Yang et al. 2019)" in found.text
    for spec in ({"norm.name": "layer"}, {"norm.name": "batch", "model.activation": "tanh"}, FULL):
        assert named(made(spec=spec, delta_norm=by_layer(1.4)))["gradient"].figures["batch_norm_theory"] is None


def test_small_updates_stand_out_only_while_there_is_something_to_learn(made: Callable[..., Run]) -> None:
    small = level(1e-5, 1e-5, 1e-5)
    assert "update_ratio" not in named(made(update_ratio=small)), "the loss has fallen by 0.9 each step"
    found = named(made(update_ratio=small, train_loss=[2.0] * 60))["update_ratio"]
    assert found.figures == {"update_ratio": pytest.approx(1e-5), "loss_over_first": 1.0}


@pytest.mark.parametrize(("nesterov", "bound"), [(False, 1.9), (True, 1.9 / 2.8)])
def test_the_bound_of_the_rate_is_that_of_momentum(made: Callable[..., Run], nesterov: bool, bound: float) -> None:
    spec = FULL | {"optim.momentum": 0.9, "optim.nesterov": nesterov}
    assert named(made(spec=spec, eta_lambda_half=[bound] * 5))["edge"].figures["bound"] == pytest.approx(bound)
    assert "edge" not in named(made(spec=spec, eta_lambda_half=[0.9 * bound] * 5))


def test_the_edge_is_that_of_the_whole_loss_and_of_plain_descent(made: Callable[..., Run]) -> None:
    assert "edge" not in named(made(eta_lambda_half=[3.0] * 5)), "batches of 64"
    assert "edge" not in named(made(spec=FULL | {"optim.name": "adam"}, eta_lambda_half=[3.0] * 5))


def test_a_wrong_variance_is_found_too(made: Callable[..., Run]) -> None:
    found = named(made(bn_mean_gap=level(0.1, 0.2), bn_var_gap=level(0.1, math.log(4))))["running_statistics"]
    assert found.figures == {"site": "L01", "bn_mean_gap": 0.2, "bn_var_gap": pytest.approx(math.log(4))}
    assert "the variance wrong by a factor of 4;" in found.text


def test_spikes_are_counted_and_the_first_losses_are_none(made: Callable[..., Run]) -> None:
    losses = [1.0, 3.0, 1.0, 1.0, 1.0, *[0.5] * 10, 2.0, 2.1, *[0.5] * 10, 1.5, *[0.5] * 10]
    found = named(made(train_loss=losses))["spikes"].figures
    slow = [x - sorted(losses[at - BEFORE : at])[BEFORE // 2] for at, x in enumerate(losses) if at >= BEFORE]
    assert found["spikes"] == 2
    assert found["rise"] == pytest.approx(max(slow))
    assert (found["step"], found["loss"], found["median_before"]) == (16, 2.1, 0.5)
    assert "spikes" not in named(made(train_loss=losses[:15]))


def test_a_drift_over_few_measurements_does_not_count(made: Callable[..., Run]) -> None:
    for count, fires in ((2 * FEWEST - 2, False), (2 * FEWEST, True)):
        drift = {"drift_mean__pre": level(0.5, 0.5)[:count], "sampling_floor__pre": level(0.2, 0.2)[:count]}
        assert ("drift" in named(made(**drift))) is fires


def test_a_divergence_says_where(made: Callable[..., Run]) -> None:
    for loss, text in ((None, "not finite"), (5e22, "5e22, more than 1000 times the first")):
        status = {"status": "diverged", "step": 3, "diverged": {"step": 3, "loss": loss, "site": "L02_fc"}}
        found = findings(made(status={**status, "metrics": {}}, train_loss=[2.0] * 9 + [loss]))
        assert found[0].name == "diverged"
        assert (
            found[0].text
            == f"The loss diverges at step 3: it is {text}; the first activation that is not finite is in L02_fc."
        )
        assert "spikes" not in {one.name for one in found}, "the last loss counts once"


def test_the_heaviest_come_first_and_there_are_at_most_five(made: Callable[..., Run]) -> None:
    many = {name: value for rule, (of, _) in EDGES.items() for name, value in of(3 * OF_RULE[rule].threshold).items()}
    found = findings(made(status={"dead": True}, spec=FULL, **many))
    order = [rule.name for rule in RULES]
    assert [one.name for one in found] == order[1 : 1 + MOST]
    assert NOTHING not in {one.name for one in found}


def test_with_room_left_what_is_calm_is_said_last(made: Callable[..., Run]) -> None:
    first, last = findings(made(dead_fraction=level(0.9, None), update_ratio=level(2e-3, 2e-3)))
    assert first.text == (
        "L00 has dead units: 0.9 of its ReLU channels are 0 on the whole probe batch, 0.9 at the start; "
        "1 of 1 layer above 0.4."
    )
    assert last.text == "Nothing else stands out: no spikes of the loss, updates of 0.002 of the weights."
    assert (last.figures, last.threshold, last.source) == ({}, None, "")


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_has_not_ended_has_no_findings(made: Callable[..., Run], status: str) -> None:
    assert findings(made(status={"status": status}, train_loss=with_rise(1.0))) == ()


def test_values_that_are_not_finite_fire_nothing_and_raise_nothing(made: Callable[..., Run]) -> None:
    for rule, (of, _) in EDGES.items():
        broken = {name: np.full(np.shape(value), None).tolist() for name, value in of(1.0).items()}
        assert rule not in named(made(spec=FULL, **broken))


EXTREME = (0.0, -1.0, 5e-324, 1e-160, 1.0, 1e160, 1.7e308, None)


@pytest.mark.parametrize("seed", range(8))
def test_values_of_any_size_raise_nothing(made: Callable[..., Run], seed: int) -> None:
    rng = np.random.default_rng(seed)
    picked = EXTREME if seed >= len(EXTREME) // 2 else (EXTREME[2 * seed], EXTREME[2 * seed + 1])
    wild = {
        name: np.array(picked, dtype=object)[rng.integers(len(picked), size=np.shape(value))].tolist()
        for of, _ in EDGES.values()
        for name, value in of(1.0).items()
    }
    for losses in (wild["train_loss"], [0.0] * 60):
        for finding in findings(made(spec=FULL | {"norm.name": "batch"}, **wild | {"train_loss": losses})):
            json.dumps(finding.figures, allow_nan=False)


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_every_rule_with_its_threshold_and_source() -> None:
    text = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", text, re.M)
    assert rows == [
        (rule.name, rule.what.replace("|", r"\|"), f"{rule.threshold:g}", f"`{rule.probes}`", rule.source)
        for rule in RULES
    ]
