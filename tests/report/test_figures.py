"""What figures draw and say, against values worked out by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bnlab.core.text import number
from bnlab.core.theory import gradient_growth
from bnlab.record.runs import Run
from bnlab.report.figures import (
    FIGURES,
    gradient_depth,
    in_order,
    landscape,
    learning_curves,
    preactivations,
    rates,
)
from bnlab.report.sheet import spread, thinned
from bnlab.report.views import Drawn, Missing, Ratio, Target, View, log_interval, ratio
from bnlab.report.write import styled, table

MakeRun = Callable[..., Run]
Make = Callable[..., View]


@pytest.fixture(autouse=True)
def _style() -> Any:
    with styled():
        yield


@pytest.fixture
def arms(run_of: MakeRun, view: Make) -> View:
    """No norm trains up to 0.1 and diverges in part at 1; batch norm trains everywhere."""
    none = [run_of(lr, s, loss=0.2 * (s + 1)) for lr in (0.01, 0.1) for s in range(3)]
    none += [run_of(1.0, 0, loss=0.5), run_of(1.0, 1, diverged=True), run_of(1.0, 2, diverged=True)]
    batch = [run_of(lr, s, loss=0.1 * (s + 1)) for lr in (0.01, 0.1, 1.0) for s in range(3)]
    return view({"no norm": none, "batch norm": batch})


def rows_of(drawn: Drawn) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table(drawn))))


def test_every_file_is_a_figure_with_its_own_place() -> None:
    own = [entry.order for entry in in_order() if entry.order < 100]
    assert own == list(range(len(own)))
    assert len(own) >= 7
    assert in_order()[0].name == "loss_by_rate"
    assert all(entry.subject for entry in in_order())


# -- final loss by rate ----------------------------------------------------------------------------------------------


def test_a_mean_is_drawn_only_where_no_seed_diverged_and_every_seed_is_there(arms: View) -> None:
    found = rates.loss_spots(arms.groups[0])
    assert found[0].middle == pytest.approx((0.2 * 0.4 * 0.6) ** (1 / 3))
    assert found[2].known == {0: 0.5}
    assert (found[2].without, len(found[2].values)) == (2, 3)
    assert math.isnan(found[2].middle)
    assert found[2].band is None


def test_the_band_is_the_t_interval_of_the_log() -> None:
    logs = np.log([0.2, 0.4, 0.6])
    expected = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    assert log_interval([0.2, 0.4, 0.6]) == pytest.approx(tuple(expected))
    assert log_interval([0.2]) is None


def test_the_title_says_how_much_larger_the_rates_are(arms: View) -> None:
    # 1 is the grid's end, so that no more than a bound is known; the losses are half as large in every seed.
    title = rates.loss_title(arms)
    assert title == "Batch norm trains at rates at least 10× larger than no norm, and to a lower final training loss"


def _names(drawn: Drawn) -> dict[str, float]:
    """Name of an arm -> its left end, in points of the axes' right edge."""
    (ax,) = drawn.figure.axes
    labels = {"no norm", "batch norm", "layer norm", "group norm"}
    drawn.figure.canvas.draw()
    return {
        text.get_text(): float(text.get_transform().transform(text.get_position())[0]) - ax.bbox.x1
        for text in ax.texts
        if text.get_text() in labels
    }


def test_names_stand_at_their_lines_or_all_beside_the_axes_and_hide_no_marker(run_of: MakeRun, view: Make) -> None:
    rated = (0.01, 0.1, 1.0)
    apart = {
        label: [run_of(lr, s, loss=base * (1 + 0.01 * s)) for lr in rated[:2] for s in range(3)]
        for label, base in (("no norm", 1.0), ("batch norm", 0.001))
    }
    apart["batch norm"] += [run_of(1.0, s, loss=0.001) for s in range(3)]
    apart["no norm"] += [run_of(1.0, s, diverged=True) for s in range(3)]
    few = _names(rates.loss_by_rate(view(apart), "x"))
    assert few["no norm"] < -20  # at the end of its line, inside
    crowded = {
        label: [run_of(lr, s, loss=10 ** (-4 + 0.25 * s)) for lr in rated for s in range(16)]
        for label in ("no norm", "batch norm", "layer norm", "group norm")
    }
    for label in ("no norm", "layer norm"):  # end at the middle rate, among the markers of the others
        crowded[label] = [
            run_of(lr, s, diverged=lr == 1.0, loss=10 ** (-4 + 0.25 * s)) for lr in rated for s in range(16)
        ]
    many = _names(rates.loss_by_rate(view(crowded), "x"))
    assert set(many) == set(crowded)
    assert len(set(many.values())) == 1
    assert min(many.values()) > 10


def test_a_title_has_the_number_of_the_claim(arms: View) -> None:
    """A report has one number for one claim: here the figure's own ones are 10 and 2."""
    claimed = dataclasses.replace(arms, ratios={"max_stable_lr": 17.8, "steps_to": 0.25})
    assert rates.loss_title(claimed).startswith("Batch norm trains at rates 17.8× larger than no norm")
    assert rates.loss_title(dataclasses.replace(arms, ratios={"max_stable_lr": 1 / 3})).startswith(
        "No norm trains at rates 3× larger"
    )
    assert claimed.claimed("steps_to", Ratio(value=0.5, clear=True, n=3)) == Ratio(
        value=0.25, clear=True, n=3, digits=3
    )
    assert claimed.claimed("drift_pre", None) is None
    assert claimed.factor("max_stable_lr", "mine") == "The title's factor is that of the claim on max_stable_lr."
    assert claimed.factor("drift_pre", "mine") == "mine"


def test_a_title_of_rates_says_that_there_is_one_seed(run_of: MakeRun, view: Make) -> None:
    arms = {"no norm": (0.5, False, True), "batch norm": (0.1, False, False)}
    few = {
        label: [run_of(lr, 0, loss=loss, diverged=bad) for lr, bad in ((0.1, first), (1.0, last))]
        for label, (loss, first, last) in arms.items()
    }
    assert rates.loss_title(view(few)) == (
        "Batch norm trains at rates at least 10× larger than no norm, and to a lower final training loss (one seed)"
    )


def test_equal_arms_are_said_to_be_equal(run_of: MakeRun, view: Make) -> None:
    same = [run_of(lr, s, loss=0.1 + 0.01 * s) for lr in (0.1, 1.0) for s in range(3)]
    other = [run_of(lr, s, loss=0.12 - 0.01 * s) for lr in (0.1, 1.0) for s in range(3)]
    title = rates.loss_title(view({"no norm": same, "batch norm": other}))
    assert title == "No clear difference between batch norm and no norm, in rates or in final training loss"


def test_a_rate_above_one_that_fails_does_not_count(run_of: MakeRun, view: Make) -> None:
    lucky = [run_of(0.1), run_of(1.0, diverged=True), run_of(10.0)]
    assert view({"no norm": lucky}).groups[0].top_rate == 0.1


def test_the_csv_has_what_is_drawn(arms: View) -> None:
    drawn = rates.loss_by_rate(arms, "loss_by_rate")
    (ax,) = drawn.figure.axes
    rows = rows_of(drawn)
    drawn_losses = sorted(
        y
        for line in ax.lines
        if line.get_marker() in "so" and line.get_linestyle() == "None"
        for y in line.get_ydata()
        if y != pytest.approx(1.0, abs=0.2) or y < 0.8
    )
    assert sorted(float(row["final_train_loss"]) for row in rows if row["final_train_loss"]) == pytest.approx(
        drawn_losses
    )
    assert {row["arm"] for row in rows} == {"no norm", "batch norm"}
    assert [row["diverged"] for row in rows if row["arm"] == "no norm" and row["lr"] == "1"] == ["2"]


def test_ticks_stand_at_the_rates_that_were_swept(arms: View) -> None:
    (ax,) = rates.loss_by_rate(arms, "x").figure.axes
    assert list(ax.get_xticks()) == [0.01, 0.1, 1.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert ax.get_xscale() == "log"


def test_many_ticks_are_thinned(arms: View) -> None:
    (ax,) = rates.loss_by_rate(arms, "x").figure.axes
    swept = list(np.logspace(-2, 0, 19))
    texts = thinned([number(lr) for lr in swept], ax, swept)
    shown = [text for text in texts if text]
    assert 4 <= len(shown) <= 10
    assert texts[0] == "0.01"


# -- steps to target -------------------------------------------------------------------------------------------------


def test_steps_to_target_are_the_first_at_which_the_median_of_five_is_there(run_of: MakeRun, view: Make) -> None:
    falling = [1.0, 1.0, 1.0, 0.1, 1.0, 0.1, 0.1, 0.1]  # the single low batch at 3 is not enough
    arms = view({"a": [run_of(0.1, train_loss=falling), run_of(1.0, train_loss=[1.0] * 8)]})
    found = rates.step_spots(arms.groups[0], rates.losses_of(arms), 0.1)
    assert found[0].values == {0: 6.0}
    assert found[1].values == {0: math.inf}
    assert (found[1].without, found[1].middle) == (1, math.inf)


def test_the_target_is_reached_by_every_arm_at_half_of_its_rates(run_of: MakeRun, view: Make) -> None:
    def at(lr: float, low: float) -> Run:
        return run_of(lr, train_loss=[2.0] + [low] * 8)

    arms = view({"a": [at(0.1, 0.03), at(1.0, 0.01)], "b": [at(0.1, 0.2), at(1.0, 0.111)]})
    # Of two rates the better one; of both arms the worse; 5 % more, rounded up to one digit.
    assert rates.target_of(arms, rates.losses_of(arms)) == pytest.approx(0.2)


def test_a_claim_s_target_and_smoothing_are_those_of_the_figure(run_of: MakeRun, view: Make) -> None:
    runs = [run_of(lr, train_loss=[1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1]) for lr in (0.1, 1.0)]
    claimed = dataclasses.replace(view({"a": runs}), target=Target(loss=0.5, smooth=3))
    drawn = rates.steps_to_target(claimed, "steps")
    assert "training loss of 0.5" in drawn.title
    assert "median of the last 3 measured steps. The target is the claim's." in drawn.note
    assert [row[3:5] for row in drawn.rows] == [(0.5, 3), (0.5, 3)]  # two of the three up to step 3 are low


# -- depth, drift, landscape, ridges ---------------------------------------------------------------------------------

NORMED = {"norm": "batch", "norm.layers": "all", "norm.every": 1, "norm.position": "before"}
NORMED |= {"model": "mlp", "model.activation": "relu", "data.batch_size": 64}


def test_growth_with_depth_excludes_the_head_and_is_drawn_beside_the_theory(run_of: MakeRun, view: Make) -> None:
    rows = [[8.0, 4.0, 2.0, 100.0]]
    arms = view(
        {"no norm": [run_of(delta_norm=[[1.0, 1.0, 1.0, 9.0]])], "batch norm": [run_of(delta_norm=rows, spec=NORMED)]}
    )
    profile = gradient_depth.profile(arms.groups[1])
    assert profile is not None
    assert profile.mean.tolist() == pytest.approx([4, 2, 1])
    assert profile.rate == pytest.approx(2)
    assert profile.theory == pytest.approx(math.sqrt(gradient_growth(64, "relu")))
    drawn = gradient_depth.draw(arms, "x")
    grow = "grow 2.00× a layer with batch norm; they stay level with no norm"
    assert drawn.title == f"Towards the input, norms of gradients at step 0 {grow}"
    theory = [float(row["theory"]) for row in rows_of(drawn) if row["theory"]]
    assert theory == pytest.approx([gradient_growth(64, "relu"), math.sqrt(gradient_growth(64, "relu")), 1])


@pytest.mark.parametrize(
    "change",
    [{"norm": "none"}, {"norm.position": "after"}, {"norm.every": 2}, {"data.batch_size": "full"}, {"model": "cnn"}],
)
def test_there_is_no_theory_line_where_the_theorem_does_not_hold(change: dict[str, Any], run_of: MakeRun) -> None:
    assert gradient_depth.closed_form(run_of(spec=NORMED)) is not None
    assert gradient_depth.closed_form(run_of(spec=NORMED | change)) is None


def test_drift_has_a_column_a_measurement_at_equal_distance_and_the_median_over_seeds(
    run_of: MakeRun, view: Make
) -> None:
    steps = [1, 2, 4, 8, 12]  # the dense start is left out: its distances are shorter
    runs = [run_of(seed=s, drift_mean__pre=(steps, [[k * (s + 1), 2.0] for k in (1, 2, 3, 4, 5)])) for s in range(3)]
    panel = preactivations.drift_of(view({"a": runs}).groups[0], 0.1)
    assert panel is not None
    assert panel.gap == 4
    assert panel.steps.tolist() == [8, 12]
    assert panel.drift.tolist() == [[8, 10], [2, 2]]


def test_drift_says_the_ratio_of_medians(run_of: MakeRun, view: Make) -> None:
    def arm(size: float) -> list[Run]:
        return [run_of(seed=s, drift_mean__pre=([2, 4, 6], [[size, size * (s + 1)]] * 3)) for s in range(3)]

    assert preactivations.drift(view({"no norm": arm(1.0), "batch norm": arm(0.1)}), "x").title == (
        "Every 2 steps, means of pre-activations move 10× less with batch norm"
    )
    assert preactivations.drift(view({"no norm": arm(1.0), "batch norm": arm(1.0)}), "x").title == (
        "Every 2 steps, no clear difference in how far means of pre-activations move between batch norm and no norm"
    )


MEASURES = {
    "loss_by_rate": "final training loss",
    "steps_to_target": "reaches a training loss of",
    "learning_curves": "is at the final training loss of",
    "drift": "Every 2 steps, means of pre-activations move",
    "ridges": "From the first to the last step, pre-activations of layer 1 move",
    "landscape": "Along the gradient, the training loss varies, relative to itself,",
    "gradient_depth": "norms of gradients at step 0",
}
"""What a title that states a direction says, by its figure: what is larger or smaller, where, and from when to when."""


@pytest.mark.parametrize("name", [entry.name for entry in in_order() if entry.order < 100])
def test_a_title_that_states_a_direction_names_its_measure(name: str, run_of: MakeRun, view: Make) -> None:
    def arm(factor: float) -> list[Run]:
        losses = [2.0 * (0.95**factor) ** step for step in range(20)]
        counts = np.zeros((3, 122))
        for row, width in enumerate((1, 1 + round(4 / factor), 1 + round(8 / factor))):
            counts[row, 60 : 60 + width] = 10
        return [
            run_of(lr, seed, loss=lr / factor * (1 + 0.01 * seed), train_loss=losses, loss_range=[factor] * 4,
                loss_lo=[1.0] * 4, loss_hi=[2.0] * 4, delta_norm=[[factor**2, factor, 1.0, 9.0]],
                drift_mean__pre=([2, 4, 6], [[factor, factor]] * 3),
                **{"histogram.pre.L01_fc": counts, "histogram.pre.L02_fc": counts})
            for lr in (0.1, 1.0) for seed in range(3)
        ]  # fmt: skip

    title = FIGURES[name].constructor(view({"no norm": arm(1.0), "batch norm": arm(4.0)}), name).title
    assert "no clear difference" not in title.lower()
    assert "batch norm" in title.lower()
    assert MEASURES[name] in title


def test_titles_of_the_drift_of_a_step_and_of_a_whole_run_say_which_they_are(run_of: MakeRun, view: Make) -> None:
    """As in figure 1 of Ioffe & Szegedy 2015: from step to step batch norm moves more, over the run less."""

    def arm(step: float, run: float) -> list[Run]:
        far = ([2, 4, 6], [[9.0, run * (1 + 0.01 * seed), 9.0] for seed in range(3)])
        near = ([2, 4, 6], [[step, step, 9.0]] * 3)
        return [run_of(seed=seed, drift_mean__pre=near, drift50__act_in=far) for seed in range(3)]

    arms = view({"no norm": arm(1.0, 3.0), "batch norm": arm(2.0, 1.0)})
    drift = preactivations.drift(arms, "drift")
    assert drift.title == "Every 2 steps, means of pre-activations move 2× more with batch norm"
    assert "drift_mean.pre" in drift.note
    assert "Over a whole run means can move less or more than that" in drift.note
    whole = FIGURES["steps"].constructor(arms, "x", of="drift50.act_in", sites="last", log="y")
    assert whole.title == "drift50.act_in, last hidden site, mean over steps: 3× lower with batch norm"


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_map_names_the_colour_of_what_is_not_finite_if_there_is_any(
    value: float, run_of: MakeRun, view: Make
) -> None:
    """The scale's own middle is a grey."""
    arms = view({"batch norm": [run_of(seed=0, drift_mean__pre=([2, 4, 6], [[1.0, 2.0], [1.0, value], [2.0, 3.0]]))]})
    assert ("not finite" in preactivations.drift(arms, "drift").note) is math.isnan(value)


def test_titles_leave_the_dense_first_steps_out(run_of: MakeRun, view: Make) -> None:
    steps, spec = ([0, 1, 2, 3, 20, 40], {"probes.points": 2})

    def arm(early: float, late: float) -> list[Run]:
        values = [early] * 4 + [late] * 2
        series = {"loss_range": (steps, values), "drift_mean.pre": (steps, [[value] for value in values])}
        series |= {"loss_lo": (steps, [1.0] * 6), "loss_hi": (steps, [2.0] * 6)}
        return [run_of(seed=seed, spec=spec, **series) for seed in range(3)]

    arms = view({"no norm": arm(1.0, 2.0), "batch norm": arm(9.0, 1.0)})
    assert "varies, relative to itself, 2× less with batch norm" in landscape.draw(arms, "x").title


def test_the_landscape_band_is_the_geometric_mean_of_the_seeds(run_of: MakeRun, view: Make) -> None:
    runs = [run_of(seed=s, loss_lo=[1.0, 2.0 * 4**s], loss_hi=[2.0, 8.0], loss_range=[1.0, 1.0]) for s in (0, 1)]
    band = landscape.band(view({"a": runs}).groups[0], 0.1)
    assert band is not None
    assert band.low.tolist() == pytest.approx([1, 4])
    assert band.high.tolist() == pytest.approx([2, 8])


def test_an_arm_whose_loss_overflows_along_the_gradient_is_drawn_by_its_lowest_and_said(
    run_of: MakeRun, view: Make
) -> None:
    """Journals have null for what is not finite."""
    none = [run_of(seed=s, loss_lo=[1.0, 2.0], loss_hi=[math.nan] * 2, loss_range=[math.nan] * 2) for s in range(3)]
    batch = [run_of(seed=s, loss_lo=[1.0, 2.0], loss_hi=[2.0, 8.0], loss_range=[1.0, 1.0]) for s in range(3)]
    drawn = landscape.draw(view({"no norm": none, "batch norm": batch}), "landscape")
    assert "Of no norm the lowest alone is drawn" in drawn.note
    assert {row["arm"] for row in rows_of(drawn)} == {"no norm", "batch norm"}


def test_the_shared_rate_is_the_largest_at_which_everything_trains(arms: View, run_of: MakeRun, view: Make) -> None:
    assert arms.common_rate() == (0.1, "the largest at which every run trains")
    none = view({"a": [run_of(0.1, diverged=True)], "b": [run_of(0.1)]})
    assert none.common_rate()[1] == "there is none at which every run trains; here most do"


def test_a_ridge_holds_all_of_its_values_but_the_tails(run_of: MakeRun, view: Make) -> None:
    counts = np.zeros((3, 122))
    counts[:, 61], counts[:, 0] = 3, 1  # three values in [0, 0.127), one below -1000
    arms = view({"a": [run_of(**{"histogram.pre.L02_fc": counts, "histogram.pre.L04_fc": counts})]})
    assert preactivations.site_of(arms, 0.1) == "L02_fc"  # the head is no layer of its own
    found = preactivations.ridges_of(arms.groups[0], 0.1, "L02_fc")
    assert found is not None
    shares = found.density * np.diff(preactivations.EDGES)
    assert shares[:, 60].tolist() == pytest.approx([0.75] * 3)
    assert {float(row["share"]) for row in rows_of(preactivations.ridges(arms, "x"))} == {0.75}


def test_bins_are_those_of_the_probe() -> None:
    from bnlab.probes._histograms import histogram_edges

    assert np.sinh(preactivations.EDGES).tolist() == pytest.approx(histogram_edges())


def test_how_far_a_distribution_moves_is_the_wasserstein_distance(run_of: MakeRun) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (2, 122)).astype(float)
    counts[:, :40], counts[:, -40:] = 0, 0
    at = preactivations.EDGES
    centre = np.sinh(np.concatenate([[at[0]], (at[1:] + at[:-1]) / 2, [at[-1]]]))
    expected = stats.wasserstein_distance(centre, centre, counts[0], counts[1])
    sd = math.sqrt(np.cov(centre, aweights=counts[0], ddof=0))
    found = preactivations.moved(run_of(**{"histogram.pre.L00_fc": counts}), "histogram.pre.L00_fc")
    assert found == pytest.approx(expected / sd)


def test_curves_are_drawn_at_each_arms_best_rate(run_of: MakeRun, view: Make) -> None:
    slow = [run_of(lr, s, loss=lr, train_loss=np.linspace(2, 1, 20)) for lr in (0.1, 1.0) for s in range(3)]
    fast = [run_of(1.0, s, loss=0.1, train_loss=np.linspace(2, 0.1 + 0.01 * s, 20)) for s in range(3)]
    drawn = learning_curves.draw(view({"no norm": slow, "batch norm": fast}), "x")
    assert {(row["arm"], row["lr"]) for row in rows_of(drawn)} == {("no norm", "0.1"), ("batch norm", "1")}
    assert drawn.title.startswith("Each at its best rate, batch norm is at the final training loss of no norm in ")
    assert drawn.title.endswith(" in 1.8× fewer steps")
    alone = learning_curves.draw(view({"no norm": slow[3:], "batch norm": fast}), "x")
    assert alone.title.startswith("At the one rate tried, batch norm is at the final training loss of no norm in ")


@pytest.mark.parametrize("name", [entry.name for entry in in_order()])
def test_what_was_not_measured_is_said_and_not_drawn(name: str, run_of: MakeRun, view: Make) -> None:
    with pytest.raises(Missing, match=r"no |not measured|one learning rate"):
        FIGURES[name].constructor(view({"a": [run_of()]}), name)


# -- statistics and places -------------------------------------------------------------------------------------------


def test_a_ratio_is_clear_when_its_interval_leaves_one_out() -> None:
    assert ratio({0: 2.0, 1: 2.1, 2: 1.9}, dict.fromkeys(range(3), 1.0)).clear  # type: ignore[union-attr]
    wide = ratio({0: 4.0, 1: 0.9, 2: 1.1}, dict.fromkeys(range(3), 1.0))
    assert wide is not None
    assert not wide.clear
    single = ratio({0: 1.1}, {0: 1.0})
    assert single is not None
    assert (single.clear, single.proviso) == (False, " (one seed)")
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_names_in_a_column_keep_their_order_and_their_distance() -> None:
    found = spread([50.0, 49.0, 48.0, 2.0], 12.0, 0.0, 60.0)
    assert found == sorted(found, reverse=True)
    assert min(a - b for a, b in pairwise(found)) >= 12 - 1e-9
    assert max(found) <= 60
    assert min(found) >= 0
