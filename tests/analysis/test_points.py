"""Which runs are compared with which, at each of the four points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import Value
from bnlab.analysis.metrics.losses import LEVELS, at_equal_losses
from bnlab.analysis.points import difference, paired
from bnlab.analysis.sides import NotTestedError
from bnlab.core.study import Claim
from bnlab.record.journal import Series
from bnlab.record.runs import Run

RunOf = Callable[..., Run]
Collect = Callable[..., Collection]
ClaimOf = Callable[..., Claim]
LOSSES: dict[tuple[str, float], tuple[float, ...]] = {
    ("batch", 0.1): (0.4, 0.4, 0.4),
    ("batch", 1.0): (0.1, 0.2, 0.9),
    ("batch", 10.0): (0.3, 0.3, 0.3),
    ("none", 0.1): (0.6, 0.6, 0.6),
    ("none", 1.0): (0.7, 0.7, 0.1),
    ("none", 10.0): (9.0, 9.0, 9.0),
}


@pytest.fixture
def sweep(run_of: RunOf) -> Callable[..., list[Run]]:
    """The runs of LOSSES; `changes` maps (norm, lr, seed) to further facts of that run, None leaves it out."""

    def runs(changes: Mapping[tuple[str, float, int], Any] | None = None) -> list[Run]:
        found = []
        for (norm, lr), losses in LOSSES.items():
            for seed, loss in enumerate(losses):
                more = (changes or {}).get((norm, lr, seed), {})
                if more is not None:
                    found.append(run_of(**({"norm": norm, "lr": lr, "seed": seed, "train_loss": loss} | more)))
        return found

    return runs


def test_best_lr_is_the_best_median_of_the_other_seeds(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    """By hand: without seed 0 the rates 0.1, 1 and 10 of batch have the medians 0.4, 0.55 and 0.3, and so on."""
    found = paired(collect(sweep()), claim_of())
    assert (found.treated.point, found.treated.values) == ("lr 10 at 2, 1 at 1 of 3 seeds", (0.3, 0.3, 0.9))
    assert (found.control.point, found.control.values) == ("lr 1 at 2, 0.1 at 1 of 3 seeds", (0.7, 0.7, 0.6))
    assert found.values == pytest.approx(np.log([0.7 / 0.3, 0.7 / 0.3, 0.6 / 0.9]))
    assert found.cautions == ("batch is best at lr 10, the grid's largest",)
    assert found.control.runs == tuple(
        f"norm=none-optim.lr={lr}-seed={seed}" for lr, seed in ((0.1, 2), (1.0, 0), (1.0, 1))
    )


def test_of_one_seed_best_lr_is_its_own_best(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    found = paired(collect([run for run in sweep() if run.seed == 0]), claim_of())
    assert (found.treated.point, found.control.point) == ("lr 1", "lr 0.1")


@pytest.mark.parametrize(("bad", "best"), [(1.0, "lr 0.1"), (0.1, "lr 1")])
def test_a_rate_with_a_loss_that_is_not_finite_is_not_best(
    bad: float, best: str, run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    """Nor is it where it comes first: no comparison with NaN is true."""
    runs = [
        run_of(norm=norm, lr=lr, seed=seed, train_loss=math.nan if lr == bad and seed else 0.5, train_accuracy=1.0)
        for norm in ("batch", "none")
        for lr in (0.1, 1.0)
        for seed in range(3)
    ]
    found = paired(collect(runs), claim_of(metric="loss_gap", compare="difference"))
    assert (found.treated.point, found.control.point) == (best, best)


def test_best_lr_of_a_measurement_is_that_of_the_loss(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    found = paired(collect(sweep()), claim_of(metric="loss_gap", compare="difference"))
    points = ("lr 10 at 2, 1 at 1 of 3 seeds", "lr 1 at 2, 0.1 at 1 of 3 seeds")
    assert (found.treated.point, found.control.point) == points


def test_best_lr_of_a_spread_is_that_of_the_metric_it_is_of(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    """Each seed's distance is from the median at the rate that is best for its loss."""
    spread = claim_of(metric="seed_spread", options={"of": "final_train_loss", "log": False}, compare="difference")
    found = paired(collect(sweep()), spread)
    assert found.treated.values == pytest.approx((0.0, 0.0, 0.7))
    assert found.control.values == pytest.approx((0.0, 0.0, 0.0))


def test_best_lr_prefers_larger_accuracies(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        run_of(norm=norm, lr=lr, test_accuracy=accuracy)
        for norm in ("batch", "none")
        for lr, accuracy in ((0.1, 0.5), (0.2, 0.9), (0.3, 0.7))
    ]
    found = paired(collect(runs), claim_of(metric="final_test_accuracy", expect="larger", compare="difference"))
    assert (found.treated.point, found.treated.values, found.cautions) == ("lr 0.2", (0.9,), ())


def test_matched_lr_averages_over_the_rates_at_which_both_train(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    changes = {("none", 10.0, seed): {"status": "diverged"} for seed in range(3)} | {("batch", 0.1, 1): {"dead": True}}
    found = paired(collect(sweep(changes)), claim_of(at="matched_lr"))
    expected = [np.log([0.6 / 0.4, 0.7 / 0.1]).mean(), math.log(0.7 / 0.2), np.log([0.6 / 0.4, 0.1 / 0.9]).mean()]
    assert found.values == pytest.approx(expected)
    assert found.treated.point == "1 to 2 learning rates, 0.1 to 1"
    assert found.treated.values == pytest.approx((math.sqrt(0.4 * 0.1), 0.2, math.sqrt(0.4 * 0.9)))
    assert (found.low == -math.inf).all()
    assert found.lost
    lost = "of 9 pairs of runs some fail: batch alone in 1, which rules out support; none alone in 3"
    assert lost in found.cautions


def test_matched_lr_where_nothing_trains_is_not_tested(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    dead = {("none", lr, seed): {"dead": True} for lr in (0.1, 1.0, 10.0) for seed in range(3)}
    with pytest.raises(NotTestedError, match="no learning rate at which both arms train"):
        paired(collect(sweep(dead)), claim_of(at="matched_lr"))


def test_a_curve_has_its_rates_in_increasing_order(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    changes = {("none", 10.0, seed): {"status": "diverged"} for seed in range(3)}
    changes |= {("none", 1.0, 2): {"dead": True}}
    found = paired(
        collect(sweep(changes)[::-1]),
        claim_of(metric="max_stable_lr", at="curve", expect="larger", smallest_effect=2.0),
    )
    assert found.control.values == (1.0, 1.0, 0.1)
    assert found.treated.values == (10.0, 10.0, 10.0)
    assert found.values == pytest.approx(np.log([10, 10, 100]))
    assert (found.low == found.values).all()
    assert np.isinf(found.high).all()
    assert found.control.point == "3 learning rates"
    assert found.cautions == ("batch: 3 of 3 values are bounds, the true ones are larger",)


def test_a_seed_counts_with_all_its_runs_only(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    found = paired(collect(sweep({("none", 1.0, 1): None})), claim_of())
    assert found.seeds == (0, 2)
    assert "left out, since some of their runs are missing or did not end: seeds 1" in found.cautions


def test_arms_are_tuned_over_the_same_grid(
    sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    found = paired(collect(sweep({("none", 1.0, seed): None for seed in range(3)})), claim_of())
    assert (found.treated.point, found.treated.values) == ("lr 10", (0.3, 0.3, 0.3))
    assert "left out, since only batch has it: lr 1" in found.cautions


def test_other_axes_are_matched_and_averaged_over(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    table = {("batch", 2): 0.1, ("batch", 4): 0.2, ("none", 2): 0.4, ("none", 4): 0.4}
    runs = [run_of(norm=norm, train_loss=loss, spec={"model.depth": depth}) for (norm, depth), loss in table.items()]
    found = paired(collect(runs, axes={"model.depth": "2,4"}), claim_of())
    assert found.values == pytest.approx([np.log([4, 2]).mean()])
    assert found.treated.values == pytest.approx((math.sqrt(0.02),))
    narrowed = paired(collect(runs), claim_of(where={"model.depth": 4}))
    assert narrowed.values == pytest.approx([math.log(2)])


def test_runs_of_an_earlier_version_of_the_study_are_left_out(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    table = {("batch", 10): 0.1, ("none", 10): 0.4, ("batch", 99): 0.1, ("none", 99): 0.2}
    runs = [
        run_of(norm=norm, seed=seed, train_loss=loss, spec={"steps": steps})
        for (norm, steps), loss in table.items()
        for seed in range(3 if steps == 10 else 2)
    ]
    most = paired(collect(runs), claim_of())
    assert most.values == pytest.approx(np.log([4, 4, 4]))
    assert "left out, since they differ in steps, which is not an axis of the study: 4 runs" in most.cautions
    current = paired(collect(runs, overrides={"steps": 99}), claim_of())
    assert current.values == pytest.approx(np.log([2, 2]))
    assert "left out, since they differ in steps, which is not an axis of the study: 6 runs" in current.cautions


def test_the_options_of_an_axis_that_is_a_group_go_with_it(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    specs: list[dict[str, Any]] = [{"model": "mlp", "model.width": 9}, {"model": "cnn", "model.channels": [1]}]
    runs = [
        run_of(norm=norm, train_loss=loss, spec=spec)
        for norm, losses in (("batch", (0.1, 0.2)), ("none", (0.4, 0.4)))
        for spec, loss in zip(specs, losses, strict=True)
    ]
    found = paired(collect(runs, axes={"model": "mlp,cnn", "seed": ""}), claim_of())
    assert found.values == pytest.approx([np.log([4, 2]).mean()])


def test_options_of_the_contrasted_group_go_with_its_choice(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(norm="batch", train_loss=0.1, spec={"norm.eps": 1e-5}), run_of(norm="none", train_loss=0.2)]
    assert paired(collect(runs), claim_of()).values == pytest.approx([math.log(2)])


def test_seeds_may_be_contrasted_by_their_place(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(seed=seed, train_loss=loss) for seed, loss in enumerate([0.1, 0.2, 0.4, 0.3])]
    found = paired(collect(runs), claim_of(contrast={"seed": ([0, 1], [3, 2])}))
    assert found.seeds == (0, 1)
    assert found.values == pytest.approx(np.log([3, 2]))
    turned = paired(collect(runs[::-1]), claim_of(contrast={"seed": ([0, 1], [3, 2])}))
    assert turned.values == pytest.approx(found.values)
    assert (found.treated.label, found.control.label) == ("seeds 0 1", "seeds 3 2")
    many = [run_of(seed=seed) for seed in range(6)]
    labelled = paired(collect(many), claim_of(contrast={"seed": ([0, 1, 2], [3, 4, 5])}))
    assert (labelled.treated.label, labelled.control.label) == ("seeds 0 to 2", "seeds 3 to 5")


@pytest.mark.parametrize("at", ["best_lr", "matched_lr"])
def test_each_arm_may_have_a_rate_of_its_own(
    at: str, sweep: Callable[..., list[Run]], collect: Collect, claim_of: ClaimOf
) -> None:
    found = paired(collect(sweep()), claim_of(contrast={"norm": ("batch", "none"), "optim.lr": (1.0, 0.1)}, at=at))
    assert (found.treated.point, found.treated.values) == ("lr 1", (0.1, 0.2, 0.9))
    assert (found.control.point, found.control.values) == ("lr 0.1", (0.6, 0.6, 0.6))
    assert (found.treated.label, found.cautions) == ("batch, optim.lr=1.0", ())


def test_a_label_says_the_axis_where_a_value_alone_does_not(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(spec={"data.batch_size": size}, train_loss=size / 10) for size in (2, 8)]
    found = paired(collect(runs), claim_of(contrast={"data.batch_size": (2, 8)}))
    assert (found.treated.label, found.control.label) == ("data.batch_size=2", "data.batch_size=8")


def test_spread_over_seeds_is_paired_by_seed(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        run_of(norm=norm, seed=seed, train_loss=loss)
        for norm, losses in (("batch", (1.0, 2.0, 2.0, 3.0)), ("none", (1.0, 1.0, 5.0, 9.0)))
        for seed, loss in enumerate(losses)
    ]
    claim = claim_of(
        metric="seed_spread", options={"of": "final_train_loss", "log": False}, at="matched_lr", compare="difference"
    )
    assert paired(collect(runs), claim).values == pytest.approx([2 - 1, 2 - 0, 2 - 0, 6 - 1])


def test_sensitivity_to_a_factor_tunes_the_rate_for_each_value(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    table = {  # the lower of the two rates counts
        ("batch", "he"): (0.1, 0.5), ("batch", "glorot"): (0.9, 0.2),
        ("none", "he"): (0.1, 0.4), ("none", "glorot"): (1.5, 0.9),
    }  # fmt: skip
    runs = [
        run_of(norm=norm, lr=lr, train_loss=loss, spec={"model.init": init})
        for (norm, init), losses in table.items()
        for lr, loss in zip((0.1, 1.0), losses, strict=True)
    ]
    claim = claim_of(metric="sensitivity", options={"factor": "model.init"}, at="curve", compare="difference")
    found = paired(collect(runs), claim)
    assert found.treated.values == pytest.approx((0.05,))
    assert found.control.values == pytest.approx((0.4,))
    assert found.control.point == "2 values of model.init"


def test_sensitivity_to_a_factor_takes_the_rate_that_is_best_by_the_other_seeds(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    """By its own loss each seed would choose the rate at which it happens to be lucky, and differ from none."""
    lucky = {("he", 0.1, 0): 0.1, ("he", 1.0, 1): math.nan, ("glorot", 1.0, 2): 0.1}
    runs = [
        run_of(norm=norm, lr=lr, seed=seed, train_loss=loss, spec={"model.init": init})
        for norm in ("batch", "none")
        for init, losses in (("he", (0.4, 0.3)), ("glorot", (0.3, 0.5)))
        for lr, usual in zip((0.1, 1.0), losses, strict=True)
        for seed in range(5)
        for loss in [lucky.get((init, lr, seed), usual) if norm == "batch" else usual]
    ]
    claim = claim_of(metric="sensitivity", options={"factor": "model.init"}, at="curve", compare="difference")
    found = paired(collect(runs), claim)
    assert found.control.values == pytest.approx([0.0] * 5)
    a_run_fails = (2.0 - 0.3) / 2  # it counts as its first loss
    assert found.treated.values == pytest.approx([0.0, a_run_fails, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("treated", "control", "expected"),
    [
        (Value(4.0), Value(2.0), (math.log(2), math.log(2), math.log(2))),
        (Value(4.0, "at least"), Value(2.0), (math.log(2), math.log(2), math.inf)),
        (Value(4.0, "at most"), Value(2.0), (math.log(2), -math.inf, math.log(2))),
        (Value(4.0), Value(2.0, "at least"), (math.log(2), -math.inf, math.log(2))),
        (Value(4.0), Value(2.0, "at most"), (math.log(2), math.log(2), math.inf)),
        (Value(4.0, "at least"), Value(2.0, "at most"), (math.log(2), math.log(2), math.inf)),
        (Value(4.0, "at least"), Value(2.0, "at least"), (0.0, 0.0, math.inf)),
    ],
)
def test_bounds_of_a_difference(
    treated: Value, control: Value, expected: tuple[float, float, float], claim_of: ClaimOf
) -> None:
    assert difference(treated, control, claim_of(expect="larger")) == pytest.approx(expected)
    # The other way round it is the same difference of the other arm.
    assert difference(control, treated, claim_of(expect="smaller")) == pytest.approx(expected)


def test_courses_are_compared_at_equal_losses() -> None:
    """Both losses fall from 1, one as e^-t, one as e^-2t; the courses are functions of the loss, L and 3 L, but for the
    spacing of the steps."""
    steps = np.arange(4001)
    slow, fast = np.exp(-steps / 1000), np.exp(-2 * steps / 1000)
    found = at_equal_losses([Series(steps, slow), Series(steps, fast)], [Series(steps, slow), Series(steps, 3 * fast)])
    assert len(found) == LEVELS
    assert [right / left for left, right in found] == pytest.approx([3.0] * LEVELS, rel=0.003)
    assert [left for left, _ in found] == pytest.approx(np.geomspace(1, math.exp(-4), LEVELS), rel=0.002)


def test_a_rising_loss_counts_with_its_minimum_so_far() -> None:
    steps = np.arange(4)
    loss = Series(steps, np.array([1.0, 0.1, 5.0, 0.01]))
    course = Series(steps, np.array([1.0, 2.0, 3.0, 4.0]))
    values = {left for left, _ in at_equal_losses([loss, loss], [course, course])}
    assert values == {1.0, 2.0, 4.0}


def test_losses_without_a_common_range_have_no_levels() -> None:
    steps = np.arange(3)
    high, low = Series(steps, np.array([9.0, 8.0, 7.0])), Series(steps, np.array([3.0, 2.0, 1.0]))
    assert at_equal_losses([high, low], [high, low]) == []
    never = Series(steps, np.full(3, math.nan))
    assert at_equal_losses([low, low], [low, never]) == []


def test_matched_loss_through_a_claim(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    loss = list(np.geomspace(1, 0.01, 50))
    runs = [
        run_of(norm=norm, seed=seed, series={"train_loss": loss, "loss_range": (range(0, 50, 5), [height] * 10)})
        for norm, height in (("batch", 0.2), ("none", 1.0))
        for seed in range(2)
    ]
    found = paired(collect(runs), claim_of(metric="loss_range", at="matched_loss"))
    assert found.values == pytest.approx(np.log([5, 5]))
    assert found.treated.point == f"lr 0.1, {LEVELS} training losses at each"
