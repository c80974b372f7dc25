"""Every verdict, on hand-made tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnlab.analysis.claims import Verdict, threshold
from bnlab.analysis.load import Collection
from bnlab.analysis.points import paired
from bnlab.analysis.sides import NotTestedError
from bnlab.analysis.statistics import ps
from bnlab.analysis.verdicts import judge
from bnlab.core.study import Claim
from bnlab.record.runs import Run

RunOf = Callable[..., Run]
Collect = Callable[..., Collection]
ClaimOf = Callable[..., Claim]
WIGGLE = (1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.0)


@pytest.fixture
def losses(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> Callable[..., Verdict]:
    """The verdict on `claim_of(**changes)` from final training losses, one a seed, at one learning rate."""

    def verdict(batch: Sequence[float], none: Sequence[float], **changes: object) -> Verdict:
        runs = [
            run_of(norm=norm, seed=seed, train_loss=loss)
            for norm, values in (("batch", batch), ("none", none))
            for seed, loss in enumerate(values)
        ]
        return judge(collect(runs, [claim_of(**changes)]))[0]

    return verdict


def scaled(factor: float, n: int = 6) -> list[float]:
    return [factor * value for value in WIGGLE[:n]]


def test_supported(losses: Callable[..., Verdict]) -> None:
    verdict = losses(scaled(0.1), [0.5] * 6)
    effects = [0.5 / value for value in scaled(0.1)]
    assert verdict.decision == "supported"
    assert verdict.effect == pytest.approx(math.exp(np.mean(np.log(effects))))
    assert verdict.interval is not None
    assert 2 < min(effects) < verdict.interval[0] < verdict.effect < verdict.interval[1] < max(effects)
    assert (verdict.p, verdict.n, verdict.seeds) == (2**-6, 6, (0, 1, 2, 3, 4, 5))
    assert verdict.why == (
        "final_train_loss smaller with batch than with none: 4.99x, 95 % 4.65 to 5.4x, above the required 2x; "
        "6 seeds, p 0.016"
    )


def test_refuted_since_it_is_too_small(losses: Callable[..., Verdict]) -> None:
    verdict = losses(scaled(0.36), [0.5] * 6)
    assert (verdict.decision, verdict.p) == ("refuted", 2**-6)
    assert verdict.effect == pytest.approx(1.39, abs=0.01)
    assert "1.39x, 95 % 1.29 to 1.5x, less than the required 2x" in verdict.why


def test_refuted_since_it_is_in_the_other_direction(losses: Callable[..., Verdict]) -> None:
    verdict = losses([0.5] * 6, scaled(0.1))
    assert (verdict.decision, verdict.p) == ("refuted", 2**-6)
    assert verdict.effect == pytest.approx(0.2, abs=0.01)
    assert verdict.why.startswith(
        "final_train_loss smaller with batch than with none: 0.2x, 95 % 0.185 to 0.215x, in the other direction;"
    )


def test_inconclusive(losses: Callable[..., Verdict]) -> None:
    verdict = losses([0.1, 0.5, 0.1, 0.5, 0.1, 0.5], [0.5] * 6)
    assert verdict.decision == "inconclusive"
    assert verdict.effect == pytest.approx(math.sqrt(5))
    assert "not clearly above or below the required 2x" in verdict.why
    assert "more than 200 seeds would be needed to decide it" in verdict.cautions


@pytest.mark.parametrize("n", [1, 2, 5])
def test_direction_only_with_fewer_than_six_seeds(n: int, losses: Callable[..., Verdict]) -> None:
    verdict = losses(scaled(0.1, n), [0.5] * n)
    assert (verdict.decision, verdict.p, verdict.n) == ("direction only", None, n)
    assert verdict.effect == pytest.approx(5, rel=0.1)
    assert f"{n} of them in this direction; a verdict needs 6" in verdict.why
    assert (verdict.interval is None) == ("95 %" not in verdict.why) == (n < 3)


def test_a_difference_is_one_of_values(losses: Callable[..., Verdict]) -> None:
    verdict = losses(scaled(0.1), [0.5] * 6, compare="difference", smallest_effect=0.3)
    assert verdict.decision == "supported"
    assert verdict.effect == pytest.approx(np.mean(0.5 - np.array(scaled(0.1))))
    assert ": 0.4, 95 % " in verdict.why


def test_a_larger_value_may_be_expected(losses: Callable[..., Verdict]) -> None:
    verdict = losses([0.5] * 6, scaled(0.1), expect="larger")
    assert verdict.decision == "supported"
    assert verdict.effect == pytest.approx(5, rel=0.05)


def test_a_tie_on_the_smallest_effect_is_inconclusive(losses: Callable[..., Verdict]) -> None:
    verdict = losses([0.1] * 6, [0.3] * 6, smallest_effect=3.0)
    assert (verdict.decision, verdict.effect, verdict.p) == ("inconclusive", pytest.approx(3), 1.0)
    assert "the effect is the same at every seed, so its interval is a point, as happens on a grid" in verdict.cautions


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"contrast": {"norm": ("layer", "none")}}, "there are no runs of layer that ended"),
        ({"where": {"optim.lr": 0.3}}, "there are no runs of batch, where optim.lr=0.3, that ended"),
        ({"metric": "loss_range"}, "loss_range was not measured"),
        (
            {"metric": "loss_range", "at": "matched_loss"},
            "there is no training loss that both arms pass with loss_range",
        ),
        (
            {"contrast": {"optim.lr": (0.1, 0.2)}, "metric": "max_stable_lr", "at": "curve"},
            "optim.lr is contrasted, so there is no curve over it",
        ),
    ],
)
def test_not_tested_says_why(changes: Mapping[str, object], why: str, losses: Callable[..., Verdict]) -> None:
    verdict = losses(scaled(0.1), [0.5] * 6, **changes)
    assert (verdict.decision, verdict.effect, verdict.p, verdict.n) == ("not tested", None, None, 0)
    assert verdict.why.startswith(why)


def test_no_seed_in_common_is_not_tested(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(norm="batch", seed=0), run_of(norm="none", seed=1)]
    assert judge(collect(runs, [claim_of()]))[0].why == "the arms have no seed in common"


def test_a_ratio_needs_values_above_zero(losses: Callable[..., Verdict]) -> None:
    verdict = losses([0.1] * 5 + [0.0], [0.5] * 6)
    assert verdict.decision == "not tested"
    assert verdict.why == "final_train_loss is 0 for batch (seed 5): no ratio; compare differences"


def test_p_is_adjusted_over_all_claims_that_are_tested(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [
        run_of(norm=norm, seed=seed, train_loss=base * WIGGLE[seed])
        for norm, base in (("batch", 0.1), ("none", 0.5))
        for seed in range(6)
    ]
    claims = [claim_of(name=str(i)) for i in range(3)] + [claim_of(name="no runs", contrast={"norm": ("l1", "l2")})]
    three = judge(collect(runs, claims))
    assert [(v.decision, v.p) for v in three] == [("supported", 3 * 2**-6)] * 3 + [("not tested", None)]
    four = judge(collect(runs, claims), collect(runs, [claim_of(name="elsewhere")]))
    assert [v.decision for v in four] == ["inconclusive"] * 3 + ["not tested", "inconclusive"]
    assert four[0].p == 4 * 2**-6
    assert "above the required 2x by the interval but not by the test" in four[0].why
    assert "with 6 seeds a report can decide at most 3 claims, not 4" in four[0].cautions


def test_a_run_that_diverged_is_the_worst_of_its_arm(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(norm="batch", seed=seed, train_loss=0.1 * WIGGLE[seed]) for seed in range(8)]
    runs += [run_of(norm="none", seed=seed, train_loss=0.5) for seed in range(7)]
    bad = run_of(norm="none", seed=7, status="diverged", series={"train_loss": [2.0, math.nan]})
    for_it = judge(collect([*runs, bad], [claim_of()]))[0]
    assert (for_it.decision, for_it.n) == ("supported", 8)
    assert for_it.control is not None
    assert for_it.control.values[7] == 2000.0
    assert "none: 1 of 8 values are bounds, the true ones are larger" in for_it.cautions
    # Where the arm that should win has diverged once, nothing is supported, however far its others are ahead.
    lost = [run_of(norm="batch", seed=7, status="diverged"), *runs[:7], *runs[8:], run_of(norm="none", seed=7)]
    against = judge(collect(lost, [claim_of(smallest_effect=1.0)]))[0]
    assert (against.decision, against.n) == ("inconclusive", 8)
    assert against.p is not None
    assert against.p > 0.5
    assert judge(collect(lost[1:-1], [claim_of(smallest_effect=1.0)]))[0].decision == "supported"


def steps(run_of: RunOf, norm: str, seed: int, reached: int | None) -> Run:
    """Its loss is 1, and 0.1 from step `reached` on."""
    losses = [1.0 if reached is None or step < reached else 0.1 for step in range(100)]
    return run_of(norm=norm, seed=seed, series={"train_loss": losses}, train_loss=losses[-1])


@pytest.mark.parametrize(
    ("batch", "none", "decision", "effect"),
    [
        ([10] * 8, [None] * 8, "supported", 10),  # at least 10 times as fast, whatever comes after
        ([10] * 8, [40] * 7 + [None], "supported", math.exp((7 * math.log(4) + math.log(10)) / 8)),
        ([10] * 7 + [None], [40] * 8, "inconclusive", math.exp((7 * math.log(4) + math.log(0.4)) / 8)),
        ([10] * 7 + [None], [40] * 7 + [None], "inconclusive", math.exp(7 * math.log(4) / 8)),
        ([None] * 8, [10] * 8, "refuted", 0.1),
        ([50] * 8, [None] * 8, "inconclusive", 2),
        ([None] * 8, [None] * 8, "not tested", None),
    ],
)
def test_a_target_that_is_not_reached_is_a_bound(
    batch: list[int | None],
    none: list[int | None],
    decision: str,
    effect: float | None,
    run_of: RunOf,
    collect: Collect,
    claim_of: ClaimOf,
) -> None:
    runs = [steps(run_of, "batch", seed, at) for seed, at in enumerate(batch)]
    runs += [steps(run_of, "none", seed, at) for seed, at in enumerate(none)]
    claim = claim_of(metric="steps_to", options={"of": "train_loss", "target": 0.2, "smooth": 1})
    verdict = judge(collect(runs, [claim]))[0]
    assert verdict.decision == decision
    assert verdict.effect == (None if effect is None else pytest.approx(effect))


def test_a_claim_that_was_edited_after_runs_began_is_reported(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    claim = claim_of()
    began = [{"claims": {claim.name: claim.digest}}] * 6 + [{"claims": {claim.name: "another"}}] * 4 + [{}] * 2
    runs = [
        run_of(norm=norm, seed=seed, train_loss=loss, provenance=began[6 * index + seed])
        for index, (norm, loss) in enumerate((("batch", 0.1), ("none", 0.5)))
        for seed in range(6)
    ]
    verdict = judge(collect(runs, [claim]))[0]
    assert verdict.decision == "supported"
    assert verdict.cautions[1:3] == (
        "the claim was edited after its first run: 4 of 12 runs began under another text",
        "2 of 12 runs began before the claim was made, or outside the study",
    )


def test_no_difference_where_only_seeds_differ(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    """The negative control: 80 studies of `none` against `none` with other seeds, three claims each."""
    rng = np.random.default_rng(0)
    contrast = {"seed": (list(range(6)), list(range(6, 12)))}
    claims = [
        claim_of(name="loss", contrast=contrast, smallest_effect=1.0),
        claim_of(name="accuracy", contrast=contrast, metric="final_test_accuracy", expect="larger",
                 compare="difference", smallest_effect=0.0),
        claim_of(name="gap", contrast=contrast, metric="loss_gap", compare="difference", smallest_effect=0.0),
    ]  # fmt: skip
    any_supported = 0
    for _ in range(80):
        draws = rng.lognormal(size=(12, 3))
        runs = [
            run_of(norm="none", seed=seed, train_loss=a, test_loss=b, test_accuracy=min(1.0, c / 9))
            for seed, (a, b, c) in enumerate(draws)
        ]
        any_supported += any(verdict.decision == "supported" for verdict in judge(collect(runs, claims)))
    assert any_supported / 80 <= 0.05 + 3.7 * (0.05 * 0.95 / 80) ** 0.5


WORSE: dict[str, dict[str, object]] = {
    "diverged": {"status": "diverged"},
    "finished without a finite loss": {"train_loss": math.nan},
    "finished beyond 1,000 times its first loss": {"train_loss": 1e21},
    "no better than chance": {"dead": True, "train_loss": 2.3},
}
PATHS: dict[str, dict[str, object]] = {
    "curve": {"metric": "max_stable_lr", "at": "curve", "expect": "larger"},
    "best_lr, a loss": {},
    "best_lr, an accuracy": {"metric": "final_train_accuracy", "expect": "larger", "compare": "difference"},
    "best_lr, a measurement": {"metric": "loss_range", "compare": "difference"},
    "best_lr, a gap": {"metric": "loss_gap", "compare": "difference"},
    "matched_lr, a loss": {"at": "matched_lr"},
    "matched_lr, a measurement": {"metric": "loss_range", "at": "matched_lr"},
    "matched_loss": {"metric": "loss_range", "at": "matched_loss"},
    "every_run, a loss": {"at": "every_run"},
    "every_run, a measurement": {"metric": "loss_range", "at": "every_run"},
    "against a number": {"at": "every_run", "contrast": {}, "against": 0.6, "where": {"norm": "batch"}},
    "beyond another contrast": {"at": "every_run", "beyond": {"norm": ("none", "none")}},
}


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=20)
@given(data=st.data())
def test_worse_runs_of_the_treated_arm_never_help_a_claim(
    path: str, run_of: RunOf, collect: Collect, claim_of: ClaimOf, data: st.DataObject
) -> None:
    """One learning rate where each arm may choose: which of several is best may depend on any run."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    rates = (0.1,) if path.startswith("best_lr") else (0.1, 1.0)
    claim = claim_of(**({"smallest_effect": 1.0 if PATHS[path].get("compare") != "difference" else 0.0} | PATHS[path]))

    def runs(worse: Mapping[tuple[float, int], dict[str, object]]) -> list[Run]:
        found, noise = [], np.random.default_rng(int(rng.integers(999)))
        for norm in ("batch", "none"):
            for lr in rates:
                for seed in range(6):
                    falling = np.geomspace(2.0, noise.uniform(0.2, 0.6), 30)
                    facts = {
                        "train_loss": float(noise.uniform(0.1, 1.0)),
                        "train_accuracy": float(noise.uniform(0.5, 1.0)),
                        "series": {"train_loss": falling, "loss_range": noise.uniform(0.1, 1.0, 30)},
                    }
                    more = worse.get((lr, seed), {}) if norm == "batch" else {}
                    found.append(run_of(**{"norm": norm, "lr": lr, "seed": seed} | facts | more))
        return found

    state = rng.bit_generator.state
    before = weighed(collect(runs({}), [claim]))
    rng.bit_generator.state = state
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(rates), st.integers(0, 5)), min_size=1, max_size=4))
    worse = {place: WORSE[data.draw(st.sampled_from(sorted(WORSE)))] for place in chosen}
    after = weighed(collect(runs(worse), [claim]))
    assert after >= before


def weighed(collection: Collection) -> float:
    """The p of support; 1 where nothing can be tested."""
    claim = collection.study.claims[0]  # type: ignore[union-attr]
    try:
        found = paired(collection, claim)
    except NotTestedError:
        return 1.0
    return float(ps(found.low, found.high, threshold(claim))[0])


@pytest.mark.parametrize("how", ["finished without a finite loss", "finished beyond 1,000 times its first loss"])
def test_a_run_that_ends_beyond_all_bounds_is_a_divergence(
    how: str, run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    """With two treated runs of 22 so, support would come from dropping them."""
    runs = [run_of(norm="batch", seed=seed, train_loss=0.1) for seed in range(9)]
    runs += [run_of(norm="batch", seed=seed, **WORSE[how]) for seed in (9, 10)]
    runs += [run_of(norm="none", seed=seed, train_loss=0.5 + seed / 100) for seed in range(11)]
    verdict = judge(collect(runs, [claim_of()]))[0]
    assert (verdict.decision, verdict.n) == ("inconclusive", 11)
    assert "batch: 2 of 11 values are bounds, the true ones are larger" in verdict.cautions
    assert [run.diverged for run in runs[8:11]] == [not run.finished for run in runs[8:11]] == [False, True, True]


def test_an_inconclusive_verdict_has_the_line_that_would_decide_it(
    run_of: RunOf, collect: Collect, claim_of: ClaimOf
) -> None:
    losses = {"batch": [0.2, 0.3, 0.15, 0.28, 0.16, 0.3], "none": [0.5] * 6}
    runs = [run_of(norm=norm, seed=seed, train_loss=x) for norm, of in losses.items() for seed, x in enumerate(of)]
    provenance = {"line": "bnlab sweep --config s 'seed=range(0,6)'", "earlier_seeds": ["range(0,3)"]}
    verdict = judge(replace(collect(runs, [claim_of()]), study_provenance=provenance))[0]
    assert verdict.decision == "inconclusive"
    assert (
        "seeds were added after a look at verdicts (seed=range(0,3)), so that a wrong one is likelier than stated"
        in (verdict.cautions)
    )
    (text,) = [caution for caution in verdict.cautions if "would decide" in caution]
    number = re.match(r"about (\d+) seeds would decide it, if they vary as these do: bnlab sweep", text)
    assert number is not None
    assert text.endswith(f"bnlab sweep --config s 'seed=range(0, {number[1]})'")


def test_a_clear_effect_is_decided_the_same_by_every_draw_of_seeds(losses: Callable[..., Verdict]) -> None:
    assert losses(scaled(0.1, 8), [0.5] * 8).repeat == 1.0
    assert losses(scaled(0.5, 8), [0.5] * 8).repeat == 1.0  # refuted as clearly


def test_an_effect_at_the_limit_is_decided_otherwise_by_about_half_of_the_draws(
    losses: Callable[..., Verdict],
) -> None:
    near = [0.1, 0.15, 0.2, 0.17, 0.22, 0.12, 0.24, 0.33]
    verdict = losses(near, [0.5] * 8)
    assert verdict.decision == "supported"
    assert verdict.p is not None
    assert 0.02 < verdict.p <= 0.05
    assert verdict.repeat is not None
    assert 0.35 < verdict.repeat < 0.7


def test_what_was_not_tested_has_no_chance_to_repeat(losses: Callable[..., Verdict]) -> None:
    assert losses(scaled(0.1, 5), [0.5] * 5).repeat is None
    assert losses(scaled(0.1), [0.5] * 6, contrast={"norm": ("layer", "none")}).repeat is None


def test_no_draw_with_a_failed_treated_run_supports(run_of: RunOf, collect: Collect, claim_of: ClaimOf) -> None:
    runs = [run_of(norm="none", seed=seed, train_loss=0.5) for seed in range(8)]
    runs += [run_of(norm="batch", seed=seed, train_loss=0.1) for seed in range(7)]
    runs.append(run_of(norm="batch", seed=7, status="diverged"))
    [verdict] = judge(collect(runs, [claim_of()]))
    assert verdict.decision == "inconclusive"
    assert verdict.repeat is not None
    # A draw without seed 7, (7/8)^8 of them, has no failure and supports.
    assert verdict.repeat == pytest.approx(1 - (7 / 8) ** 8, abs=0.07)
