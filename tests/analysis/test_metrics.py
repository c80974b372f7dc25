"""Metrics against closed forms and by hand, on hand-made journals; and every one of them on runs that were trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnlab.analysis.metrics import METRICS, Metric, MetricError, Value, about_answers, reads, table
from bnlab.analysis.metrics.losses import trailing_median
from bnlab.analysis.metrics.rates import decades, largest_of
from bnlab.core.errors import UsageError
from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.record.runs import Run, read_run

RunOf = Callable[..., Run]
NAN = math.nan


def value(name: str, of: Any, /, **options: Any) -> Value:
    return METRICS[name].value(of, **options)


def test_the_trailing_median_by_its_definition() -> None:
    values = np.random.default_rng(0).normal(size=23)
    for points in (1, 2, 5, 23, 40):
        slow = [np.median(values[max(0, end - points + 1) : end + 1]) for end in range(len(values))]
        assert trailing_median(values, points) == pytest.approx(np.array(slow))
    assert trailing_median(np.zeros(0), 5).shape == (0,)


def test_final_values_are_those_of_the_status(run_of: RunOf) -> None:
    run = run_of(train_loss=0.3, train_accuracy=0.95, test_loss=0.5, test_accuracy=0.9)
    found = [
        value(f"final_{name}", run).value for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    ]
    assert found == [0.3, 0.95, 0.5, 0.9]
    assert value("loss_gap", run).value == pytest.approx(0.2)
    assert value("accuracy_gap", run).value == pytest.approx(0.05)


def test_best_values_are_those_of_the_journal(run_of: RunOf) -> None:
    run = run_of(
        series={"test_accuracy": [0.1, 0.9, 0.7], "test_loss": [2.0, 0.4, 0.6], "train_loss": [3, 2, 1, 1, 1, 0]}
    )
    assert value("best_test_accuracy", run) == Value(0.9)
    assert value("best_test_loss", run) == Value(0.4)
    assert value("best_train_loss", run) == Value(1.0)  # of the last five: 2 1 1 1 0


@pytest.mark.parametrize(
    "name", ["final_train_loss", "final_test_loss", "best_test_loss", "end_batch_loss", "loss_area"]
)
def test_the_loss_of_a_run_that_diverged_is_over_1000_times_the_first(name: str, run_of: RunOf) -> None:
    diverged = run_of(status="diverged", series={"train_loss": [2.0, NAN], "test_loss": [2.0]})
    assert value(name, diverged) == Value(2000.0, "at least")
    at_once = run_of(status="diverged", series={"train_loss": [NAN]})
    assert value(name, at_once) == Value(1e12, "at least")


def test_the_accuracy_of_a_run_that_diverged_is_0(run_of: RunOf) -> None:
    diverged = run_of(status="diverged", step=7, series={"test_accuracy": [0.1, 0.8]})
    assert value("final_test_accuracy", diverged) == value("best_test_accuracy", diverged) == Value(0.0)
    assert value("divergence_step", diverged) == Value(7.0)
    assert value("trains", diverged) == Value(0.0)


def test_a_run_that_did_not_diverge_may_have_diverged_later(run_of: RunOf) -> None:
    assert value("divergence_step", run_of()) == Value(100.0, "at least")
    assert [value("trains", run).value for run in (run_of(), run_of(dead=True))] == [1.0, 0.0]


def test_steps_to_a_target(run_of: RunOf) -> None:
    run = run_of(
        series={
            "train_loss": ([0, 10, 20, 30, 40], [2.0, 0.1, 1.5, 0.4, 0.3]),
            "test_accuracy": ([0, 20, 40], [0.1, 0.5, 0.6]),
        }
    )
    assert value("steps_to", run, of="train_loss", target=0.5, smooth=1) == Value(10.0)
    assert value("steps_to", run, of="train_loss", target=0.5, smooth=3) == Value(30.0)
    assert value("steps_to", run, of="test_accuracy", target=0.5, smooth=1) == Value(20.0)
    assert value("steps_to", run, of="test_accuracy", target=0.9, smooth=1) == Value(100.0, "at least")
    assert value("steps_to", run, of="train_loss", target=9.0, smooth=1) == Value(1.0)
    assert math.isnan(value("steps_to", run, of="test_loss", target=0.5, smooth=1).value)
    diverged = run_of(status="diverged", step=3, series={"train_loss": [2.0, 0.6, NAN]})
    assert value("steps_to", diverged, of="train_loss", target=0.5, smooth=1) == Value(100.0, "at least")


def test_the_area_of_an_exponential_decay_is_its_middle(run_of: RunOf) -> None:
    steps = np.array([0, 1, 5, 20, 60, 100])
    run = run_of(series={"train_loss": (steps, 3 * np.exp(-steps / 25))})
    assert value("loss_area", run).value == pytest.approx(3 * math.exp(-2))


def test_the_loss_at_the_end_is_that_of_the_last_tenth(run_of: RunOf) -> None:
    run = run_of(series={"train_loss": (range(0, 101, 10), [9.0] * 9 + [2.0, 4.0])})
    assert value("end_batch_loss", run) == Value(3.0)


def test_what_is_lost_in_use_is_the_accuracy_of_late_batches_less_that_of_the_whole_split(run_of: RunOf) -> None:
    run = run_of(series={"train_accuracy": (range(0, 101, 10), [0.1] * 9 + [0.9, 1.0])}, train_accuracy=0.7)
    assert value("lost_in_use", run).value == pytest.approx(0.25)
    assert math.isnan(value("lost_in_use", run_of(series={})).value)


def test_a_course_leaves_the_head_out(run_of: RunOf) -> None:
    values = [[1.0, 3.0, 5.0, 99.0], [2.0, 4.0, 6.0, 99.0], [NAN, NAN, NAN, NAN]]
    run = run_of(series={"drift_mean.pre": ([5, 10, 15], values), "ics_rel": ([5, 10, 15], values)})
    assert value("drift_pre", run) == Value(3.5)
    assert value("ics_rel", run) == Value(4.5)  # the first site has none by definition
    course = METRICS["drift_pre"].course
    assert course is not None
    assert course(run).steps.tolist() == [5, 10, 15]
    assert course(run).values[:2].tolist() == [3.0, 4.0]


def test_a_course_of_the_net_is_its_median(run_of: RunOf) -> None:
    run = run_of(series={"loss_range": [0.1, 0.3, 500.0, NAN]})
    assert value("loss_range", run) == Value(0.3)
    assert math.isnan(value("grad_change", run).value)


def test_drift50_is_that_of_the_last_hidden_site_at_the_end(run_of: RunOf) -> None:
    run = run_of(series={"drift50.act_in": [[0.0, 0.0, 0.0], [0.3, 0.1, 9.0], [0.4, 0.2, 9.0]]})
    assert value("drift50", run) == Value(0.2)
    assert math.isnan(value("drift50", run_of()).value)


def test_how_terms_cancel_is_a_metric_of_the_initialization(run_of: RunOf) -> None:
    values = [[3.0, 5.0, 7.0, 99.0], [1.0, 1.0, 1.0, 1.0]]
    assert value("abs_over_sum", run_of(series={"abs_over_sum": values})) == Value(5.0)
    later = run_of(series={"grad_kurtosis": ([1, 2], values)})
    assert math.isnan(value("grad_kurtosis", later).value)


def test_gradient_growth_of_a_geometric_sequence(run_of: RunOf) -> None:
    norms = [1.5 ** (8 - layer) for layer in range(8)] + [123.0]  # the last is the head
    run = run_of(series={"delta_norm": [norms, [1.0] * 9]})
    assert value("gradient_growth", run, skip_first=0, skip_last=0).value == pytest.approx(1.5**2)
    norms[0] = norms[7] = 50.0
    run = run_of(series={"delta_norm": [norms]})
    assert value("gradient_growth", run, skip_first=1, skip_last=1).value == pytest.approx(1.5**2)
    assert math.isnan(value("gradient_growth", run, skip_first=4, skip_last=4).value)


def test_the_largest_rate_is_found_going_up_without_a_gap() -> None:
    rates = np.array([0.01, 0.1, 1.0, 10.0])
    assert largest_of(rates, [True, True, False, True]) == Value(0.1)
    assert largest_of(rates, [False, True, True, True]) == Value(10.0, "at least")
    assert largest_of(rates, [False] * 4) == Value(pytest.approx(0.001), "at most")


def test_decades_are_counts_times_spacing_on_an_even_grid() -> None:
    rates = np.logspace(-3, 1, 9)
    assert decades(rates, [False, False, True, True, True, False, True, False, False]) == Value(2.0)
    assert decades(rates, [True] * 9) == Value(4.5, "at least")
    assert decades(rates, [False] * 9) == Value(0.0)
    uneven = decades(np.array([1.0, 10.0, 1000.0]), [False, True, False])
    assert uneven == Value(1.5)


def curve(run_of: RunOf, ends: list[float], first: float = 2.0) -> dict[float, Run]:
    """Final losses at rates 1, 10, 100, ...; NaN for a divergence."""
    made = {}
    for power, loss in enumerate(ends):
        status = "diverged" if math.isnan(loss) else "finished"
        made[10.0**power] = run_of(status=status, train_loss=loss, series={"train_loss": [first, 1.0]})
    return made


def test_a_rate_is_stable_that_ends_lower_than_it_began(run_of: RunOf) -> None:
    assert value("max_stable_lr", curve(run_of, [1.0, 0.5, 3.0, NAN])) == Value(10.0)
    assert value("stable_decades", curve(run_of, [1.0, 0.5, 3.0, NAN])) == Value(2.0)
    dead = curve(run_of, [1.0]) | {10.0: run_of(dead=True)}
    assert value("max_stable_lr", dead) == Value(1.0)


def test_a_rate_is_usable_that_reaches_its_target(run_of: RunOf) -> None:
    found = curve(run_of, [1.0, 0.5, 0.7, NAN])
    assert value("max_usable_lr", found, of="train_loss", target=0.7) == Value(100.0)
    assert value("usable_decades", found, of="train_loss", target=0.6) == Value(1.0)
    assert value("max_usable_lr", found, of="test_accuracy", target=0.9) == Value(0.1, "at most")


def test_sensitivity_is_the_mean_distance_from_the_best_capped_at_the_first_loss(run_of: RunOf) -> None:
    # min(l, 2) - 0.5: 0.5, 0, 1.5, 1.5
    assert value("lr_sensitivity", curve(run_of, [1.0, 0.5, 7.0, NAN])).value == pytest.approx(3.5 / 4)


def test_the_envelope_is_that_of_the_stable_runs(run_of: RunOf) -> None:
    runs = {
        rate: run_of(train_loss=0.1, series={"train_loss": values})
        for rate, values in ((1.0, [4.0, 2.0, 1.0]), (2.0, [4.0, 1.0, 0.5]), (3.0, [4.0, 3.0, 2.0]))
    }
    runs[4.0] = run_of(status="diverged", series={"train_loss": [4.0, NAN]})
    assert value("lr_envelope", runs).value == pytest.approx(2.0)  # of 0, 2, 3


def test_every_metric_says_what_it_is() -> None:
    rows = table()
    assert [row["name"] for row in rows] == METRICS.names()
    assert len(rows) > 40
    for row in rows:
        assert row["description"], row
        assert row["source"], row
        assert row["unit"], row


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"metric: no such metric, got 'max_stable_rl'\. Did you mean: max_stable_lr\?"
    ):
        METRICS["max_stable_rl"]


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="metric=loss_gap: registered twice"):
        METRICS.register("loss_gap", of="run", meaning="m", source="s", unit="1")(lambda run: 0.0)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_metric_of_a_run_is_there_after_training(
    norm: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    more = ("probes.representation.batch=24", "probes.channels.batch=24", "probes.sharpness.every=4", "model.depth=3")
    every = "+".join(["probes=full", *PROBES.names()])
    ended = run(spec_of(every, "probes.activations.batch=24", f"norm={norm}", *more))
    trained = read_run(ended.folder, reads())
    missing = {
        name
        for name in METRICS.names()
        if METRICS[name].of == "run" and METRICS[name].shown_with is not None
        if not math.isfinite(value(name, trained, **METRICS[name].shown_with or {}).value)
    }
    of_norms = {"thm41_error", "bn_mean_gap", "bn_var_gap", "bn_mean_noise", "bn_sd_noise", "bn_mean_sd"}
    assert missing == (of_norms if norm == "none" else set())


def _refused(*_: Any, **__: Any) -> Any:
    raise KeyError("drift")


@pytest.mark.parametrize(
    ("gives", "problem"),
    [
        (lambda values: values[:-1], "must give a value for each of 3 seeds, and gives the shape, got [2]."),
        (lambda values: "high", "must give a value for each of 3 seeds, and gives the shape, got []."),
        (lambda values: ["a", "b", "c"], "must give a float or a Value, got 'a'."),
        (_refused, "KeyError in test_metrics.py, line "),
    ],
)
def test_a_user_s_metric_of_an_arm_must_give_a_number_per_seed(gives: Any, problem: str) -> None:
    metric = Metric(name="own", constructor=gives, of="arm", source="", unit="")
    with pytest.raises(MetricError, match=re.escape(f"metric=own: {problem}")):
        metric.values(np.array([1.0, 2.0, 3.0]))


def test_an_error_in_a_user_s_course_names_the_metric(run_of: Callable[..., Run]) -> None:
    metric = Metric(name="own", constructor=lambda run: 1.0, of="run", source="", unit="", course=_refused)
    with pytest.raises(MetricError, match=r"^metric=own: KeyError in test_metrics.py, line \d+: 'drift'"):
        metric.course_of(run_of())


def test_an_answer_that_is_no_number_is_the_worst_and_not_a_missing_one(run_of: Callable[..., Run]) -> None:
    run = run_of(series={"train_loss": [2.0, 1.0]})
    answered = replace(run, answer={"test_loss": math.nan, "test_accuracy": 0.1}, _series=run._series)
    assert METRICS["answer_loss"].value(answered) == METRICS["final_test_loss"].value(run_of(test_loss=None))
    assert METRICS["answer_loss"].value(answered) == Value(2000.0, "at least")
    assert METRICS["answer_accuracy"].value(answered) == Value(0.1)
    assert math.isnan(METRICS["answer_loss"].value(run).value)


def test_a_metric_is_of_answers_if_one_that_it_names_is() -> None:
    assert about_answers("answer_loss", {})
    assert about_answers("slope", {"of": "answer_loss"})
    assert about_answers("correlation", {"of": "final_train_loss", "to": "answer_accuracy"})
    assert not about_answers("correlation", {"of": "final_train_loss", "to": "final_test_accuracy"})
