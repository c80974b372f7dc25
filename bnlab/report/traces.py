"""Series of several runs brought onto common steps; smoothing. Plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bnlab.analysis.metrics.losses import SMOOTHED, trailing_median
from bnlab.report.base import Floats, SeenRun


def smoothed(values: Floats, points: int = SMOOTHED) -> Floats:
    """As the metrics have it: the median of the last few measured values."""
    return trailing_median(values, points)


def together(
    runs: Iterable[SeenRun], metric: str, average: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, list[Floats]]:
    """The steps [T] at which every run that has the metric has it, `average` over the runs [R, T, ...] there, and the
    runs themselves. Runs without it are left out; no steps where there is none."""
    found = [series for series in (run.series(metric) for run in runs) if len(series[0])]
    if not found:
        return np.empty(0), np.empty(0), []
    steps = found[0][0]
    for others, _ in found[1:]:
        steps = np.intersect1d(steps, others)
    lined = [values[np.searchsorted(at, steps)] for at, values in found]
    return steps, average(np.stack(lined)), lined


def geometric(stack: Floats) -> Floats:
    """Over the first axis; NaN where one is not positive."""
    with np.errstate(all="ignore"):
        return np.asarray(np.exp(np.log(np.where(stack > 0, stack, np.nan)).mean(axis=0)), np.float64)


def median(stack: Floats) -> Floats:
    """Over the first axis, of what is finite; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of NaN alone give NaN, as they should
        return np.asarray(np.nanmedian(np.where(np.isfinite(stack), stack, np.nan), axis=0), np.float64)


def even(steps: Floats) -> Floats:
    """Which steps come after the usual distance; the first few measured steps are denser than the rest.

    >>> even(np.array([0.0, 1, 2, 4, 6, 8])).tolist()
    [False, False, False, True, True, True]
    """
    if len(steps) < 2:
        return np.zeros(len(steps), bool)
    gaps = np.diff(steps)
    values, counts = np.unique(gaps, return_counts=True)
    return np.concatenate([[False], gaps == values[counts.argmax()]])


def finite(values: Iterable[float]) -> list[float]:
    return [float(x) for x in values if np.isfinite(x)]


def by_seed(runs: Sequence[SeenRun], figure: Callable[[SeenRun], float]) -> dict[int, float]:
    """A figure of each run, where it is positive and finite."""
    found = {run.seed: figure(run) for run in runs}
    return {seed: value for seed, value in found.items() if np.isfinite(value) and value > 0}
