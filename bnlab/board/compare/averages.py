"""Means over seeds, and how far they can be trusted. Legend: N seeds, T steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnlab.core.study import evenly
from bnlab.report.views import Floats

SMALLEST = 1e-9
"""What is averaged geometrically counts as no less, as in the report: an exact 0 has no logarithm."""
MOST_POINTS = 500
"""Of a series: more than a screen has room for, fewer than TensorBoard begins to leave out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One figure of every seed at the steps [T] that all have; values [N, T] or, of layers, [N, T, L]."""

    steps: Floats
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Over seeds, at the steps [T] at which every seed is finite: the mean, and the ends of its interval."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def common(seeds: Sequence[tuple[Floats, Floats]]) -> Course | None:
    """Steps and values of each seed -> those at the steps that all have; None where a seed has none at all."""
    if not seeds or any(len(steps) == 0 for steps, _ in seeds):
        return None
    at = seeds[0][0]
    for steps, _ in seeds[1:]:
        at = np.intersect1d(at, steps)
    values = np.stack([values[np.searchsorted(steps, at)] for steps, values in seeds])
    return Course(steps=at, values=values) if len(at) else None


def over_seeds(course: Course, *, log: bool) -> Mean:
    """The geometric mean if `log`, else the arithmetic one, and its 95 % t-interval, of the logarithms if `log`. Of two
    seeds the interval would span decades: `low` and `high` are the two themselves. Of one, all three are the same.

    >>> both = Course(steps=np.array([0.0]), values=np.array([[1.0], [100.0]]))
    >>> round(float(over_seeds(both, log=True).mean[0]), 9)
    10.0
    """
    values = course.values
    if log:
        with np.errstate(invalid="ignore"):
            values = np.log(np.maximum(values, SMALLEST))
    seen = np.isfinite(values).all(axis=0)
    kept = np.flatnonzero(seen)[evenly(int(seen.sum()), MOST_POINTS)] if seen.any() else np.empty(0, int)
    values = values[:, kept]
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    if len(values) > 2:
        half = t_quantile(len(values)) * values.std(axis=0, ddof=1) / math.sqrt(len(values))
        low, high = mean - half, mean + half
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(np.minimum(high, 700.0))
    return Mean(steps=course.steps[kept], mean=mean, low=low, high=high)


def t_quantile(seeds: int) -> float:
    """Of Student's t with one degree of freedom fewer, at 97.5 %."""
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 0.975))
