"""Tests and intervals against enumeration by brute force, closed forms and simulation. Legend: S tables, N pairs."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bnlab.analysis.statistics import (
    LEVEL,
    REDRAWS,
    RESAMPLES,
    claims_decidable,
    decide,
    holm,
    interval,
    ps,
    repeated,
    sign_flip,
    sign_flips,
)
from bnlab.record.journal import Floats

DIFFERENCES = st.lists(st.integers(-6, 9), min_size=2, max_size=8)


def by_enumeration(differences: list[float]) -> float:
    """Share of the choices of signs with a sum at least as large."""
    choices = list(itertools.product((1, -1), repeat=len(differences)))
    seen = sum(differences)
    as_large = sum(sum(s * d for s, d in zip(signs, differences, strict=True)) >= seen for signs in choices)
    return as_large / len(choices)


@given(DIFFERENCES)
def test_sign_flip_is_the_share_of_all_choices_of_signs(differences: list[int]) -> None:
    x = np.array(differences, dtype=np.float64)
    assert sign_flip(x, "greater") == by_enumeration(list(x))
    assert sign_flip(x, "less") == by_enumeration(list(-x))


@pytest.mark.parametrize(("value", "p"), [(2.0, 0.5), (0.0, 1.0), (-2.0, 1.0)])
def test_one_pair_can_have_one_of_two_signs(value: float, p: float) -> None:
    assert sign_flip(np.array([value]), "greater") == p


def test_of_many_pairs_signs_are_drawn() -> None:
    x = np.random.default_rng(0).normal(0.6, 1, size=16)
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    exact = float((signs @ x >= x.sum() - 1e-12).mean())
    assert 0.01 < exact < 0.2
    assert sign_flip(x, "greater") == pytest.approx(exact, abs=0.01)


@given(DIFFERENCES, st.integers(0, 7), st.integers(1, 20))
def test_a_larger_difference_never_raises_p(differences: list[int], which: int, more: int) -> None:
    raised = list(differences)
    raised[which % len(raised)] += more
    before, after = (sign_flip(np.array(x, dtype=np.float64), "greater") for x in (differences, raised))
    assert after <= before


def test_a_difference_without_a_lower_bound_supports_nothing() -> None:
    low, high = np.array([5.0] * 7 + [-np.inf]), np.array([5.0] * 8)
    assert ps(low, high, 1.0) == (1.0, 1.0)
    assert ps(np.array([5.0] * 8), high, 1.0)[0] == 2**-8
    assert ps(-high, -low, -1.0)[1] == 1.0
    assert sign_flip(np.array([5.0] * 7 + [-1e9]), "greater") >= 0.5


@pytest.mark.parametrize(
    ("support", "refute", "p", "ends", "decision"),
    [
        (0.01, 1.0, 0.04, (1.1, 3.0), "supported"),
        (0.01, 1.0, 0.04, (0.9, 3.0), "inconclusive"),  # the interval does not say so
        (0.01, 1.0, 0.06, (1.1, 3.0), "inconclusive"),  # not after Holm
        (1.0, 0.01, 0.04, (0.1, 0.9), "refuted"),
        (1.0, 0.01, 0.04, (0.1, 1.1), "inconclusive"),
        (1.0, 0.01, 0.06, (0.1, 0.9), "inconclusive"),
    ],
)
def test_test_and_interval_must_agree(
    support: float, refute: float, p: float, ends: tuple[float, float], decision: str
) -> None:
    assert decide(support, refute, p, ends, smallest=1.0) == decision


def test_the_smallest_effect_itself_is_not_above_it() -> None:
    x = np.log(np.full(8, 0.3)) - np.log(np.full(8, 0.1))  # 3, but for rounding
    assert ps(x, x, np.log(3)) == (1.0, 1.0)
    low, high = interval(x)
    assert decide(2**-8, 1.0, 2**-8, (float(low), float(high)), float(np.log(3))) == "inconclusive"


def expanded_by_enumeration(x: Floats) -> tuple[float, float]:
    """Percentiles of the means of all n^n resamples, at the levels of Hesterberg 2015, section 5.3."""
    n = len(x)
    means = [np.mean(choice) for choice in itertools.product(x, repeat=n)]
    level = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    low, high = np.quantile(means, [level, 1 - level])
    return float(low), float(high)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_interval_is_that_of_all_resamples(seed: int) -> None:
    x = np.random.default_rng(seed).exponential(size=6)
    low, high = interval(x)
    slow = expanded_by_enumeration(x)
    assert low == pytest.approx(slow[0], abs=0.03 * np.ptp(x))
    assert high == pytest.approx(slow[1], abs=0.03 * np.ptp(x))


def test_intervals_of_tables_are_those_of_each() -> None:
    tables = np.random.default_rng(0).normal(size=(3, 6))
    tables[1] = 0.7
    low, high = interval(tables)
    for table, one, other in zip(tables, low, high, strict=True):
        alone = interval(table)
        assert one == pytest.approx(alone[0], abs=0.05)
        assert other == pytest.approx(alone[1], abs=0.05)


@pytest.mark.parametrize("x", [[3.0], [2.0, 2.0], [0.0] * 6, [0.1 + 0.2] * 3])
def test_where_nothing_varies_the_interval_is_a_point(x: list[float]) -> None:
    assert interval(np.array(x)) == (pytest.approx(x[0]), pytest.approx(x[0]))


@pytest.mark.parametrize("x", [[1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 5.0]])
def test_where_little_varies_the_interval_holds_the_mean(x: list[float]) -> None:
    low, high = interval(np.array(x))
    assert min(x) <= low < np.mean(x) < high <= max(x)


@settings(max_examples=30)
@given(DIFFERENCES)
def test_an_interval_is_within_the_differences(differences: list[int]) -> None:
    low, high = interval(np.array(differences, dtype=np.float64), resamples=99)
    assert min(differences) <= low <= high <= max(differences)


@settings(max_examples=30)
@given(DIFFERENCES, st.integers(0, 7), st.integers(1, 9))
def test_an_interval_never_falls_when_a_difference_rises(differences: list[int], which: int, more: int) -> None:
    x = np.array(differences, dtype=np.float64)
    y = x.copy()
    y[which % len(x)] += more
    (low, high), (low_y, high_y) = interval(x, resamples=99), interval(y, resamples=99)
    assert low <= low_y
    assert high <= high_y


def test_holm_as_worked_by_hand() -> None:
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which must not be below the one before it.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.4, 0.9])) == pytest.approx([0.8, 0.9])
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("seeds", [6, 7, 8])
def test_as_many_claims_as_can_be_decided_are(seeds: int) -> None:
    most = claims_decidable(seeds)
    assert (holm(np.full(most, 2.0**-seeds)) <= LEVEL).all()
    assert (holm(np.full(most + 1, 2.0**-seeds)) > LEVEL).all()


def decided(tables: Floats, smallest: float) -> dict[str, Floats]:
    """Which claims of each report are supported and refuted, in reports [S, M, N]; intervals only where p allows."""
    support, refute = ps(tables, tables, smallest)
    adjusted = holm(np.minimum(support, refute))
    found = {name: np.zeros(adjusted.shape) for name in ("supported", "refuted", "inconclusive")}
    candidates = np.argwhere(adjusted <= LEVEL)
    low, high = interval(np.concatenate([tables[tuple(at)][None] for at in candidates]), resamples=499)
    for at, *ends in zip(map(tuple, candidates), low, high, strict=True):
        decision = decide(support[at], refute[at], adjusted[at], (float(ends[0]), float(ends[1])), smallest)
        found[decision][at] = 1
    return found


def rate_bound(level: float, tables: int) -> float:
    """What a rate at its level stays below in all but one of 10,000 simulations."""
    return level + 3.7 * (level * (1 - level) / tables) ** 0.5


@pytest.mark.parametrize(("claims", "n"), [(1, 6), (3, 6), (1, 8), (8, 8)])
def test_no_report_supports_too_often_what_is_not_so(claims: int, n: int) -> None:
    """At the smallest effect itself, where a false verdict is likeliest: of several claims with half of their noise in
    common, any."""
    rng = np.random.default_rng(n)
    reports = 4000 // claims
    noise = rng.normal(size=(reports, claims, n)) + rng.normal(size=(reports, 1, n))
    found = decided(0.7 + noise, smallest=0.7)
    for decision in ("supported", "refuted"):
        assert found[decision].any(axis=1).mean() <= rate_bound(LEVEL, reports)
    assert found["supported"].any()


@pytest.mark.parametrize(("n", "spreads", "power"), [(6, 2.0, 0.97), (8, 1.5, 0.95)])
def test_power_at_the_shipped_number_of_seeds(n: int, spreads: float, power: float) -> None:
    """One claim, its effect so many standard deviations of a pair's difference above the smallest."""
    tables = np.random.default_rng(1).normal(spreads, 1, size=(1000, 1, n))
    assert decided(tables, smallest=0.0)["supported"].mean() >= power - 0.02


@pytest.mark.parametrize("n", [6, 9, 14])
@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_all_flips_at_once_are_the_test_one_by_one(n: int, alternative: Literal["greater", "less"]) -> None:
    rng = np.random.default_rng(n)
    tables = np.concatenate([rng.normal(0.5, 1, (20, n)), rng.integers(-2, 3, (20, n))])  # the latter with ties
    assert np.array_equal(sign_flips(tables, alternative), sign_flip(tables, alternative))


def test_drawn_flips_are_near_the_test() -> None:
    tables = np.random.default_rng(0).normal(0.4, 1, (20, 20))
    assert np.abs(sign_flips(tables, "greater") - sign_flip(tables, "greater")).max() < 0.03


def test_the_chance_of_the_same_decision_is_that_of_deciding_each_draw() -> None:
    values = np.random.default_rng(3).normal(1.5, 1, 8)
    chosen = np.random.default_rng(0).integers(8, size=(REDRAWS, 8))
    decisions = []
    for draw in values[chosen]:
        support, refute = (p.item() for p in ps(draw, draw, 0.0))
        low, high = interval(draw, RESAMPLES // 10)
        decisions.append(decide(support, refute, 2 * min(support, refute), (low.item(), high.item()), 0.0))
    share = decisions.count("supported") / REDRAWS
    assert 0.2 < share < 0.9
    assert repeated("supported", (values, values, values), 0.0, 2.0) == pytest.approx(share, abs=0.03)
