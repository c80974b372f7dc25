"""Claims without a control, of sameness, of two metrics, beyond another contrast, of named arms, at every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from bnlab.analysis.arms import arms_of
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import METRICS
from bnlab.analysis.points import paired
from bnlab.analysis.sides import NotTestedError
from bnlab.analysis.statistics import decide, ps, ps_same
from bnlab.analysis.verdicts import judge
from bnlab.core import theory
from bnlab.core.study import ARM, Claim
from bnlab.record.runs import Run

RunOf = Callable[..., Run]
Collect = Callable[..., Collection]
ClaimOf = Callable[..., Claim]
LOSSES = (0.5, 0.52, 0.49, 0.51, 0.5, 0.48, 0.5, 0.53)


def one_arm(claim_of: ClaimOf, **changes: Any) -> Claim:
    return claim_of(**({"contrast": {}, "against": 0.5, "where": {"norm": "batch"}} | changes))


def of_losses(run_of: RunOf, losses: Sequence[float], **facts: Any) -> list[Run]:
    return [run_of(seed=seed, train_loss=loss, **facts) for seed, loss in enumerate(losses)]


def test_against_a_number_every_value_is_compared_with_it(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    found = paired(collect(of_losses(run_of, LOSSES)), one_arm(claim_of, against=0.25, compare="difference"))
    assert found.values == pytest.approx(0.25 - np.array(LOSSES))
    assert (found.treated.label, found.control.label) == ("batch", "0.25")
    assert found.control.values == (0.25,) * 8


def test_against_a_formula_each_run_has_its_own_number(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        run_of(seed=seed, train_loss=2.0, spec={"data.batch_size": size, "model.activation": "relu"})
        for size in (8, 64)
        for seed in range(3)
    ]
    claim = one_arm(claim_of, against="theory.gradient_growth", at="every_run")
    growth = [theory.gradient_growth(size, "relu") for size in (8, 64)]
    found = paired(collect(runs, axes={"data.batch_size": "", "seed": ""}), claim)
    assert found.values == pytest.approx(np.mean([math.log(g / 2) for g in growth]))


@pytest.mark.parametrize(
    ("against", "within", "decision"), [(0.5, 1.1, "supported"), (0.4, 1.1, "refuted"), (0.65, 1.1, "refuted")]
)
def test_sameness_is_supported_within_and_refuted_beyond_on_either_side(
    against: float, within: float, decision: str, run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    claim = one_arm(claim_of, against=against, expect="same", smallest_effect=None, within=within)
    (verdict,) = judge(collect(of_losses(run_of, LOSSES), [claim]))
    assert verdict.decision == decision
    words = {"supported": "within 0.909x to 1.1x", "refuted": "beyond 0.909x to 1.1x"}[decision]
    assert f"final_train_loss of batch the same as {against}" in verdict.why
    assert words in verdict.why


def test_sameness_at_the_border_is_inconclusive(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    claim = one_arm(claim_of, against=0.55, expect="same", smallest_effect=None, within=1.1)
    (verdict,) = judge(collect(of_losses(run_of, LOSSES), [claim]))
    assert verdict.decision == "inconclusive"


def test_a_run_that_fails_never_supports_sameness(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = of_losses(run_of, LOSSES)
    runs[3] = run_of(seed=3, status="diverged")
    claim = one_arm(claim_of, expect="same", smallest_effect=None, within=1e6, at="every_run")
    (verdict,) = judge(collect(runs, [claim]))
    assert verdict.decision != "supported"


def test_a_smallest_effect_below_one_allows_to_be_that_much_worse(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    runs = [*of_losses(run_of, LOSSES), *of_losses(run_of, [loss / 1.1 for loss in LOSSES], norm="none")]
    decided = [
        judge(collect(runs, [claim_of(smallest_effect=least, at="every_run")]))[0].decision
        for least in (0.8, 1 / 1.1, 1.0)
    ]
    assert decided == ["supported", "inconclusive", "refuted"]


def test_two_metrics_of_the_same_runs(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(seed=seed, train_loss=0.5, test_loss=0.5 + 0.1 * seed) for seed in range(3)]
    claim = claim_of(
        metric="final_test_loss",
        contrast={"metric": ("final_test_loss", "final_train_loss")},
        expect="larger",
        compare="difference",
    )
    found = paired(collect(runs), claim)
    assert found.values == pytest.approx([0.0, 0.1, 0.2])
    assert (found.treated.label, found.control.label) == ("final_test_loss", "final_train_loss")
    assert "final_test_loss larger than final_train_loss" in judge(collect(runs, [claim]))[0].why


def test_of_one_arm_both_sides_are_at_the_rate_that_is_best_by_the_claims_metric(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    runs = [
        run_of(seed=seed, lr=lr, test_loss=test, train_loss=train)
        for seed in range(3)
        for lr, test, train in ((0.1, 0.2, 0.9), (1.0, 0.8, 0.1))
    ]
    claim = claim_of(metric="final_test_loss", contrast={"metric": ("final_test_loss", "final_train_loss")})
    found = paired(collect(runs), claim)
    assert (found.treated.values, found.control.values) == ((0.2,) * 3, (0.9,) * 3)


def test_beyond_takes_off_the_effect_of_a_second_contrast(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    losses = {"none": (1.0, 1.1), "batch": (0.5, 0.4), "group": (0.9, 1.0), "layer": (0.7, 0.6)}
    runs = [run for norm, values in losses.items() for run in of_losses(run_of, values, norm=norm)]
    claim = claim_of(
        contrast={"norm": ("batch", "none")}, beyond={"norm": ("layer", "group")}, compare="difference", at="every_run"
    )
    found = paired(collect(runs), claim)
    assert found.values == pytest.approx([0.5 - 0.2, 0.7 - 0.4])
    one = replace(claim, beyond={})
    assert one.digest != claim.digest
    assert judge(collect(runs, [claim]))[0].why.startswith(
        "final_train_loss smaller with batch than with none, beyond layer against group: 0.3"
    )


def test_a_pair_that_the_second_contrast_leaves_out_rules_out_support(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    """The control of the second contrast diverges: its effect, which is taken off, may have been of any size."""
    series = {"batch": 0.1, "none": 0.9, "layer": 0.5, "group": 0.5}
    runs = [
        run_of(norm=norm, seed=seed, series={"loss_range": [x, x]}, status="diverged" if lost else "finished")
        for norm, x in series.items()
        for seed in range(8)
        for lost in (norm == "group" and seed == 3,)
    ]
    claim = claim_of(
        metric="loss_range",
        contrast={"norm": ("batch", "none")},
        beyond={"norm": ("layer", "group")},
        compare="difference",
        smallest_effect=0.1,
        at="every_run",
    )
    assert judge(collect(runs, [claim]))[0].decision == "inconclusive"
    whole = [
        run_of(norm=run.spec["norm"], seed=run.seed, series={"loss_range": [series[run.spec["norm"]]] * 2})
        for run in runs
    ]
    assert judge(collect(whole, [claim]))[0].decision == "supported"


def test_a_formula_without_a_value_for_a_run_is_not_tested(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(seed=s, spec={"data.batch_size": "full", "model.activation": "tanh"}) for s in range(6)]
    (verdict,) = judge(collect(runs, [one_arm(claim_of, against="theory.gradient_growth", at="every_run")]))
    assert verdict.decision == "not tested"
    assert verdict.why.startswith("theory.gradient_growth has no value for ")


def test_at_every_run_nets_that_do_not_train_count(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    series = {"loss_range": [0.5, 0.5]}
    runs = [run_of(norm=norm, seed=s, dead=True, series=series) for norm in ("batch", "none") for s in range(3)]
    claim = claim_of(metric="loss_range", at="every_run")
    assert paired(collect(runs), claim).values == pytest.approx([0.0] * 3)
    with pytest.raises(NotTestedError, match="there is no learning rate at which both arms train"):
        paired(collect(runs), replace(claim, at="matched_lr"))
    diverged = run_of(norm="batch", seed=1, status="diverged", series=series)
    worse = paired(collect([run if run.seed != 1 or run.spec["norm"] != "batch" else diverged for run in runs]), claim)
    assert (worse.seeds, worse.lost, set(worse.low)) == ((0, 2), True, {-math.inf})


def armed(collect: Collect, runs: Sequence[Run], arms: Mapping[str, Any], claims: Sequence[Claim]) -> Collection:
    found = collect(runs, claims, axes={ARM: ",".join(arms), "optim.lr": "", "seed": ""})
    assert found.study is not None
    study = replace(found.study, arms=arms)
    named = tuple(replace(run, spec={**run.spec, ARM: study.arm_of(run.spec)}) for run in runs)
    return replace(found, study=study, runs=named)


ARMS = {"plain": {"norm": "none"}, "dropped": {"norm": "none", "model.dropout": 0.3}, "batch": {"norm": "batch"}}


def test_named_arms_are_told_apart_by_the_most_settings(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        *of_losses(run_of, (0.4, 0.5), spec={"norm": "none", "model.dropout": 0.0}),
        *of_losses(run_of, (0.2, 0.1), spec={"norm": "none", "model.dropout": 0.3}),
        *of_losses(run_of, (0.3, 0.3), spec={"norm": "batch", "norm.eps": 1e-5, "model.dropout": 0.0}),
    ]
    claim = claim_of(contrast={ARM: ("dropped", "plain")}, compare="difference", at="every_run")
    collection = armed(collect, runs, ARMS, [claim])
    found = paired(collection, claim)
    assert found.values == pytest.approx([0.2, 0.4])
    assert (found.treated.label, found.control.label) == ("dropped", "plain")
    arms = arms_of(collection)
    assert (arms.axis, list(arms.names.values()), arms.rest) == (ARM, ["plain", "dropped", "batch"], ())


def test_the_two_one_sided_tests_by_hand() -> None:
    """Of six equal differences all choices of signs but one are smaller: p = 2^-6 where a test can decide."""
    inside, beyond, below = (np.full(6, x) for x in (0.0, 3.0, -3.0))
    assert [float(p) for p in ps_same(inside, inside, 1.0)] == [2**-6, 1.0]
    assert [float(p) for p in ps_same(beyond, beyond, 1.0)] == [1.0, 2 * 2**-6]
    assert [float(p) for p in ps_same(below, below, 1.0)] == [1.0, 2 * 2**-6]
    infinite = np.full(6, np.inf)
    assert float(ps_same(inside, infinite, 1.0)[0]) == 1.0
    assert float(ps(inside, inside, -1.0)[0]) == 2**-6


@pytest.mark.parametrize(
    ("interval", "support", "refute", "decision"),
    [
        ((-0.5, 0.5), 0.01, 0.9, "supported"),
        ((-0.5, 1.5), 0.01, 0.9, "inconclusive"),
        ((1.2, 1.5), 0.9, 0.01, "refuted"),
        ((-1.5, -1.2), 0.9, 0.01, "refuted"),
        ((0.9, 1.5), 0.9, 0.01, "inconclusive"),
    ],
)
def test_sameness_needs_its_whole_interval(
    interval: tuple[float, float], support: float, refute: float, decision: str
) -> None:
    assert decide(support, refute, min(support, refute), interval, 1.0, same=True) == decision


# Metrics that these claims are about


def test_medians_do_not_count_the_dense_first_steps(run_of: RunOf) -> None:
    steps, values = [0, 1, 2, 3, 25, 50, 75, 99], [9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 9.0]
    run = run_of(series={"loss_range": (steps, values)}, spec={"probes.points": 4})
    assert METRICS["loss_range"].value(run).value == 1.0
    assert METRICS["loss_range"].value(run_of(series={"loss_range": (steps, values)})).value == 9.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"sites": "hidden", "window": [0, 1], "over": "median"},
            np.median([2, 3, 6, 9]),
        ),
        ({"sites": "first", "window": [0, 1], "over": "mean"}, (1 + 3 + 5 + 9) / 4),
        ({"sites": "last", "window": [0, 1], "over": "max"}, 30.0),
        ({"sites": "all", "window": [0, 0], "over": "last"}, 2.0),
        ({"sites": [2], "window": [0.5, 1], "over": "last"}, 30.0),
        ({"sites": [7], "window": [0, 1], "over": "mean"}, math.nan),
        ({"sites": [0, 3], "window": [0, 0], "over": "last"}, 1.0),
    ],
)
def test_course(options: Mapping[str, Any], expected: float, run_of: RunOf) -> None:
    rows = [[1, 2, 10, math.nan], [3, 4, 0, math.nan], [5, 6, 20, math.nan], [9, 8, 30, math.nan]]
    run = run_of(series={"mine": ([0, 25, 50, 75], rows)}, spec={"probes.points": 4})
    assert METRICS["course"].value(run, of="mine", **options).value == pytest.approx(expected, nan_ok=True)


def test_growth_is_the_slope_of_the_log_over_sites(run_of: RunOf) -> None:
    down = [[3.0**-site for site in range(6)], [1.0] * 6]
    run = run_of(series={"delta_norm": ([0, 50], down)}, spec={"probes.points": 2})
    fixed = {"of": "delta_norm", "power": 2, "window": [0, 0], "skip_first": 1, "skip_last": 1}
    assert METRICS["growth"].value(run, direction="down", **fixed).value == pytest.approx(9.0)
    assert METRICS["growth"].value(run, direction="up", **fixed).value == pytest.approx(1 / 9)
    assert METRICS["growth"].value(run, direction="up", **fixed | {"window": [0.5, 1]}).value == pytest.approx(1.0)


def test_growth_fit_is_1_for_an_exponential_and_the_share_that_its_line_explains_else(run_of: RunOf) -> None:
    rows = [[3.0**-site for site in range(6)], [math.exp(y) for y in (1, 2, 1, 5, 0, 9)], [2.0] * 6]
    rows.append([2 + 1e-7 * site for site in range(6)])  # a constant but for the rounding of float32
    run = run_of(series={"mine": ([0, 25, 50, 75], rows), "net": ([0], [1.0])}, spec={"probes.points": 4})
    fixed = {"of": "mine", "skip_first": 0, "skip_last": 1}
    assert METRICS["growth_fit"].value(run, window=[0, 0], **fixed).value == pytest.approx(1.0)
    share = np.corrcoef(range(4), [1, 2, 1, 5])[0, 1] ** 2
    assert METRICS["growth_fit"].value(run, window=[0.2, 0.3], **fixed).value == pytest.approx(share)
    for constant in ([0.5, 0.5], [0.75, 0.75], [0.5, 1]):  # no variance that a line could explain
        assert math.isnan(METRICS["growth_fit"].value(run, window=constant, **fixed).value)
        growth = METRICS["growth"].value(run, window=constant, power=1, direction="up", **fixed)
        assert growth.value == pytest.approx(1.0, abs=1e-6)
    for none in ({"of": "net"}, {"skip_last": 4}, {"skip_last": 9}):
        assert math.isnan(METRICS["growth_fit"].value(run, window=[0, 0], **fixed | none).value)


def test_slope_largest_and_spread_of_a_curve(run_of: RunOf) -> None:
    losses = {1.0: 0.1, 10.0: 0.2, 100.0: 5.0}
    facts = {"loss": "cross_entropy", "reduction": "mean"}
    curve = {
        x: run_of(seed=i, train_loss=y, spec=facts, provenance={"classes": 10})
        for i, (x, y) in enumerate(losses.items())
    }
    of = {"of": "final_train_loss", "of_options": {}, "factor": "x"}
    expected = np.polyfit(np.log([1, 10, 100]), np.log([0.1, 0.2, 5.0]), 1)[0]
    assert METRICS["slope"].value(curve, log="xy", **of).value == pytest.approx(expected)
    assert METRICS["slope"].value(curve, log="none", **of).value == pytest.approx(
        np.polyfit([1, 10, 100], [0.1, 0.2, 5.0], 1)[0]
    )
    assert METRICS["largest"].value(curve, of="train_loss", target=0.3, factor="x").value == 10.0
    assert METRICS["spread"].value(curve, of="train_loss", factor="x").value == pytest.approx(
        math.log(math.log(10) / 0.1)
    )
    diverged = curve | {1000.0: run_of(status="diverged", spec=facts, provenance={"classes": 10})}
    assert METRICS["spread"].value(diverged, of="train_loss", factor="x").value == pytest.approx(
        math.log(math.log(10) / 0.1)
    )
    assert math.isnan(METRICS["slope"].value(diverged, log="xy", **of).value)


@pytest.mark.parametrize(
    ("losses", "accuracies", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.1], -1),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.2, 0.4], 1 - 6 * 2 / (4 * 15)),
        ([0.1, 0.2, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4], 4.5 / math.sqrt(4.5 * 5)),  # ranks 1, 2.5, 2.5, 4
        ([0.1, 0.1, 0.1], [0.1, 0.2, 0.3], math.nan),
        ([0.1, 0.2], [0.1, 0.2], math.nan),
        ([0.1, math.nan, 0.3], [0.1, 0.2, 0.3], math.nan),
    ],
)
def test_correlation_is_that_of_ranks(
    losses: Sequence[float], accuracies: Sequence[float], expected: float, run_of: RunOf
) -> None:
    curve = {
        float(10**index): run_of(seed=index, train_loss=loss, test_accuracy=accuracy)
        for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    }
    of = {"of": "final_train_loss", "of_options": {}, "to": "final_test_accuracy", "to_options": {}, "factor": "x"}
    found = METRICS["correlation"].value(curve, **of).value
    assert found == pytest.approx(expected, nan_ok=True)
    if math.isfinite(expected):
        assert found == pytest.approx(spearmanr(losses, accuracies).statistic)


def test_spikes(run_of: RunOf) -> None:
    losses = [1.0] * 6 + [2.5] + [1.0] * 2 + [math.nan]
    run = run_of(series={"train_loss": losses})
    assert METRICS["spikes"].value(run).value == 2 / 5
    assert METRICS["spikes"].value(run_of(series={"train_loss": [10.0] + [0.1] * 6 + [0.5]})).value == 0.0


def test_cost_is_that_of_the_status_and_of_the_probe(run_of: RunOf) -> None:
    run = run_of(series={"train_loss": [2.0, 1.0], "saved_bytes": [4096.0, 8192.0]})
    names = ("step_s", "nets_at_once", "parameters", "saved_bytes")
    old = [METRICS[name].value(run).value for name in names]
    assert old == pytest.approx([math.nan, math.nan, math.nan, 4096.0], nan_ok=True)
    run.status["timing"] |= {"run_s": 3.0, "measure_s": 1.0, "nets": 6}  # type: ignore[index]
    run.status["parameters"] = 1234  # type: ignore[index]
    assert [METRICS[name].value(run).value for name in names] == pytest.approx([0.02, 6.0, 1234.0, 4096.0])
    assert math.isnan(METRICS["saved_bytes"].value(run_of(series={"train_loss": [1.0]})).value)
    assert [(METRICS[name].unit, METRICS[name].better) for name in names] == [
        ("s", "lower"), ("nets", None), ("numbers", "lower"), ("bytes", "lower"),
    ]  # fmt: skip


def test_seconds_of_a_step_and_to_a_target(run_of: RunOf) -> None:
    run = run_of(series={"train_loss": [2.0, 1.0, 0.5, 0.1]})
    run.status["timing"] |= {"run_s": 3.0, "measure_s": 1.0}  # type: ignore[index]
    assert METRICS["step_s"].value(run).value == pytest.approx(0.02)
    found = METRICS["time_to_s"].value(run, of="train_loss", target=0.5, smooth=1)
    assert (found.value, found.bound) == (pytest.approx(0.04), None)
    assert METRICS["time_to_s"].value(run, of="train_loss", target=0.01, smooth=1).bound == "at least"


# -- what the control reaches ----------------------------------------------------------------------


def accuracies(run_of: RunOf, norm: str, lr: float, seed: int, depth: int, values: Sequence[float], **more: Any) -> Run:
    steps = range(0, 10 * len(values), 10)
    series = {"test_accuracy": (steps, values), "test_loss": (steps, [1 - value for value in values])}
    return run_of(norm=norm, lr=lr, seed=seed, series=series, spec={"model.depth": depth}, **more)


def reached_slowly(runs: Sequence[Run], of: str, smooth: int) -> float:
    """Ioffe & Szegedy 2015, figure 3: the most that the control reaches, here in the median over its seeds."""
    turn = 1 if of.endswith("accuracy") else -1
    by_rate: dict[float, list[float]] = {}
    for run in runs:
        best = -math.inf
        values = [turn * value for value in run.series(of).values.tolist()]
        for end in range(len(values)):
            window = sorted(values[max(0, end + 1 - smooth) : end + 1])
            middle = len(window) // 2
            best = max(best, window[middle] if len(window) % 2 else (window[middle - 1] + window[middle]) / 2)
        by_rate.setdefault(run.lr, []).append(-math.inf if run.diverged else best)
    medians = []
    for bests in by_rate.values():
        low, high = sorted(bests)[(len(bests) - 1) // 2], sorted(bests)[len(bests) // 2]
        medians.append((low + high) / 2)
    return turn * max(medians)


@pytest.mark.parametrize("of", ["test_accuracy", "test_loss"])
@pytest.mark.parametrize("smooth", [1, 3])
@pytest.mark.parametrize("at", ["best_lr", "every_run"])
def test_the_target_of_a_control_is_what_it_reaches_at_its_best_rate(
    of: str, smooth: int, at: str, run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    rng = np.random.default_rng(0)
    runs = [
        accuracies(
            run_of, norm, lr, seed, depth, np.sort(rng.uniform(0.2, 0.9, 12)).tolist(),
            status="diverged" if (norm, lr, seed) == ("none", 0.5, 3) else "finished",
        )
        for norm in ("batch", "none")
        for lr in (0.1, 0.5)
        for depth in (5, 10)
        for seed in range(6)
    ]  # fmt: skip
    claim = claim_of(metric="steps_to", options={"of": of, "target": "control", "smooth": smooth}, at=at)
    collection = collect(runs, axes={"norm": "", "optim.lr": "", "model.depth": "", "seed": ""})
    found = paired(collection, claim)
    targets = [
        reached_slowly(
            [run for run in runs if run.spec["norm"] == "none" and run.spec["model.depth"] == depth], of, smooth
        )
        for depth in (10, 5)
    ]
    each = []
    for depth, target in zip((10, 5), targets, strict=True):
        numbered = replace(claim, options={**claim.options, "target": target}, where={"model.depth": depth})
        each.append(paired(collection, numbered))
    assert found.values == pytest.approx(np.mean([one.values for one in each], axis=0))
    assert found.treated.point.endswith(f", to {targets[0]:.4g}, to {targets[1]:.4g}")


def test_a_control_that_reaches_nothing_is_no_target(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        accuracies(run_of, norm, 0.1, seed, 5, [0.1, 0.9], status="diverged" if norm == "none" else "finished")
        for norm in ("batch", "none")
        for seed in range(6)
    ]
    claim = claim_of(metric="steps_to", options={"of": "test_accuracy", "target": "control", "smooth": 1})
    (verdict,) = judge(collect(runs, [claim]))
    assert (verdict.decision, verdict.why) == ("not tested", "none reaches nothing: it diverges, or was not measured")
