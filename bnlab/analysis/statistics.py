"""Exact tests and intervals for paired differences. Legend: ... tables side by side, N pairs.

A difference is above 0 when it speaks for the claim. The test is the exact sign-flip test: were the differences, less
the smallest effect, symmetric about 0, all 2^N choices of their signs would be equally likely, and p is the share of
the choices with a mean at least as large as the one seen. Fisher 1935; Good 2005, chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import numpy as np
from scipy import special, stats

from bnlab.analysis.claims import Decision
from bnlab.record.journal import Floats

LEVEL = 0.05
"""Of a false `supported` or `refuted`, over all claims of a report together."""
CONFIDENCE = 0.95
FEWEST_SEEDS = 6
"""The smallest number of pairs whose two-sided p can be below 0.05: 2^-5 = 0.031."""
FEWEST_FOR_INTERVAL = 3
"""Pairs, below which there is nothing to resample."""
EXACT_UP_TO = 14
"""Pairs; above it signs are drawn, 2^14 times."""
RESAMPLES = 9999
MOST_SEEDS = 200
"""More seeds than that are not asked for."""
ROUNDED = 9
"""Decimals of a difference that count."""
REDRAWS = 500
"""Draws of seeds, by which the chance of the same decision is estimated."""
SignFlip = Callable[[Floats, Literal["greater", "less"]], Floats]


def sign_flip(differences: Floats, alternative: Literal["greater", "less"]) -> Floats:
    """One-sided p of `mean difference is 0`. [..., N] -> [...]

    >>> sign_flip(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "greater").item() == 2**-6
    True
    """
    if differences.shape[-1] == 1:
        toward = differences[..., 0] > 0 if alternative == "greater" else differences[..., 0] < 0
        return np.where(toward, 0.5, 1.0)
    exact = differences.shape[-1] <= EXACT_UP_TO
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=2 ** (EXACT_UP_TO + 1) if exact else 2**EXACT_UP_TO - 1,
        alternative=alternative,
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.pvalue, dtype=np.float64)


def sign_flips(differences: Floats, alternative: Literal["greater", "less"]) -> Floats:
    """As `sign_flip`, for many resamples of one set of differences: all flips in one product of matrices. [K, N] -> [K]

    >>> sign_flips(np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), "greater").item() == 2**-6
    True
    """
    n = differences.shape[-1]
    sums = _signs(n) @ differences.T  # [flips, K]
    seen = differences.sum(axis=-1)
    slack = 1e-9 * np.abs(differences).sum(axis=-1)  # equal sums, added in another order
    as_large = sums >= seen - slack if alternative == "greater" else sums <= seen + slack
    drawn = int(n > EXACT_UP_TO)  # then the flip seen counts as one of the draws
    return np.asarray((as_large.sum(axis=0) + drawn) / (len(sums) + drawn), dtype=np.float64)


@cache
def _signs(n: int) -> Floats:
    """All choices of n signs; above `EXACT_UP_TO` 2^12 - 1 that are drawn. [flips, N]"""
    if n > EXACT_UP_TO:
        drawn: Floats = np.random.default_rng(0).choice([-1.0, 1.0], (2**12 - 1, n))
        return drawn
    return np.asarray(1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1), dtype=np.float64)


def interval(differences: Floats, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """95 % bootstrap interval of the mean: percentiles, expanded for few differences (Hesterberg 2015, section 5.3).
    [..., N] -> [...], [...]

    Its ends never fall when a difference rises, as those of an interval from a standard deviation may.

    Of one pair, and of equal differences, it is that difference: it then says nothing about its certainty.
    """
    n = differences.shape[-1]
    if n < 2:
        return differences.mean(axis=-1), differences.mean(axis=-1)
    found = stats.bootstrap(
        (differences,),
        np.mean,
        axis=-1,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=1
        - 2 * float(special.ndtr(math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.5 - CONFIDENCE / 2))),
        method="percentile",
        batch=max(1, 200_000 // max(1, differences.size)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def t_half_width(values: Floats) -> Floats:
    """Half the width of the 95 % t-interval of the mean over the first axis, of two values or more. [N, ...] -> [...]

    >>> round(float(t_half_width(np.array([1.0, 2.0, 3.0]))), 3)
    2.484
    """
    n = len(values)
    return np.asarray(_t_quantile(n) * values.std(axis=0, ddof=1) / math.sqrt(n))


def t_interval(values: Sequence[float], *, of_share: bool = False) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean of finite values, which for shares ends at 0 and 1; None with fewer than two.

    >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])], t_interval([0.2, 0.9, 1.0], of_share=True)[1]
    ([-0.484, 4.484], 1.0)
    """
    if len(values) < 2:
        return None
    half, mean = float(t_half_width(np.array(values))), math.fsum(values) / len(values)
    ends = mean - half, mean + half
    return (max(ends[0], 0.0), min(ends[1], 1.0)) if of_share else ends


def _t_quantile(n: int) -> float:
    """Of the mean of n values, for a 95 % interval."""
    return float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2))


def holm(ps: Floats) -> Floats:
    """p-values adjusted so that rejecting at the level keeps the chance of any false rejection below it, whatever
    their dependence (Holm 1979). [..., M] -> [..., M]

    >>> holm(np.array([0.01, 0.04, 0.03])).round(12).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps, axis=-1, kind="stable")
    sorted_ps = np.take_along_axis(ps, order, axis=-1)
    factors = np.arange(ps.shape[-1], 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(sorted_ps * factors, axis=-1))
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


def claims_decidable(seeds: int) -> int:
    """How many claims one report can decide with so many seeds: the smallest p is 2^-seeds, and Holm multiplies the
    smallest of M by M. Below 6 seeds none, by rule.

    >>> [claims_decidable(seeds) for seeds in (5, 6, 7, 8, 10)]
    [0, 3, 6, 12, 51]
    """
    return 0 if seeds < FEWEST_SEEDS else math.floor(LEVEL * 2 ** min(seeds, EXACT_UP_TO))


def seeds_to_decide(differences: Floats, smallest: float, tested: int) -> int | None:
    """About how many seeds would decide one of `tested` claims, if further differences had the mean and the spread of
    these: the smallest number at which the interval lies on one side of the smallest effect, and the test can decide so
    many claims. None above `MOST_SEEDS`. [N]

    >>> seeds_to_decide(np.array([1.0, -1.0, 2.0, 0.0, 1.0, 0.0]), 0.0, 1)
    20
    """
    distance, sd = abs(float(differences.mean()) - smallest), float(differences.std(ddof=1))
    for n in range(len(differences) + 1, MOST_SEEDS + 1):
        if (
            float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * sd / math.sqrt(n) < distance
            and claims_decidable(n) >= tested
        ):
            return n
    return None


def ps(low: Floats, high: Floats, smallest: float, test: SignFlip = sign_flip) -> tuple[Floats, Floats]:
    """p of 'effect <= smallest' and of 'effect >= smallest'. [..., N] -> [...], [...]

    A sign-flip p never grows when a difference does, so that p at the lowest differences is an upper bound of p at the
    true ones; and with one of them minus infinity, half of all choices of signs are at least as good as the one seen.
    """
    bounded_low = np.asarray(np.isfinite(low).all(axis=-1))
    bounded_high = np.asarray(np.isfinite(high).all(axis=-1))
    support = test(_beyond(np.where(bounded_low[..., None], low, 0.0), smallest), "greater")
    refute = test(_beyond(np.where(bounded_high[..., None], high, 0.0), smallest), "less")
    return np.where(bounded_low, support, 1.0), np.where(bounded_high, refute, 1.0)


def ps_same(low: Floats, high: Floats, within: float, test: SignFlip = sign_flip) -> tuple[Floats, Floats]:
    """p of 'effect is beyond +- within', by two one-sided tests (Schuirmann 1987), and of 'effect is within', twice the
    smaller of both sides'. [..., N] -> [...], [...]"""
    above, below = ps(low, high, -within, test)  # effect <= -within, effect >= -within
    beyond, short = ps(low, high, within, test)
    return np.maximum(above, short), np.minimum(1.0, 2 * np.minimum(beyond, below))


def _beyond(differences: Floats, smallest: float) -> Floats:
    """Less the smallest effect; rounded, since a ratio of two rates of a grid may be the smallest effect itself."""
    return np.round(differences - smallest, ROUNDED)


def decide(
    p_support: float, p_refute: float, p: float, interval: tuple[float, float], smallest: float, *, same: bool = False
) -> Decision:
    """From both raw p, the adjusted p of the smaller, and the interval; of an effect that must be above `smallest`, or
    with `same` between it and its negative."""
    low, high = (round(end - smallest, ROUNDED) for end in interval)
    above_other_end = round(interval[0] + smallest, ROUNDED) > 0, round(interval[1] + smallest, ROUNDED) < 0
    holds, fails = (above_other_end[0] and high < 0, low > 0 or above_other_end[1]) if same else (low > 0, high < 0)
    if p <= LEVEL and p_support < p_refute and holds:
        return "supported"
    if p <= LEVEL and p_refute < p_support and fails:
        return "refuted"
    return "inconclusive"


def repeated(
    decision: Decision,
    differences: tuple[Floats, Floats, Floats],
    smallest: float,
    holm_factor: float,
    *,
    same: bool = False,
) -> float:
    """The share of bootstrap draws of the seeds that come to the same decision. `differences` are values, lowest and
    highest, [N] each; a seed keeps its three."""
    n = len(differences[0])
    chosen = np.random.default_rng(0).integers(n, size=(REDRAWS, n))
    values, low, high = (part[chosen] for part in differences)
    support, refute = (ps_same if same else ps)(low, high, smallest, sign_flips)
    adjusted = np.minimum(1.0, holm_factor * np.minimum(support, refute))
    columns = (support, refute, adjusted, *interval(values, RESAMPLES // 10))
    decided = [
        decide(p_support, p_refute, p, (bottom, top), smallest, same=same)
        for p_support, p_refute, p, bottom, top in np.stack(columns, axis=-1).tolist()
    ]
    return decided.count(decision) / REDRAWS
