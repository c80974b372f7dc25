"""Metrics of the measurements of a run's probes: mostly medians over its equally spaced measured steps. Legend: T
measured steps, L sites.

Medians, since single batches give spikes of any height. Most metrics have a course, their value at every measured step.
Where a measurement has a value a site, the course is the median over the hidden sites, which are all but the head; of a
net with a single site, over that one. What was measured of a run that diverged counts up to its divergence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le, MaxLen, MinLen

from bnlab.analysis.metrics import METRICS, over_finite
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run

Over = Literal["hidden", "below one", "net"]


def over_sites(values: Floats, over: Over) -> Floats:
    """Median over sites. [T, L] -> [T]. `below one`: the hidden sites that have a site before them."""
    if over == "net" or values.ndim == 1:
        return values
    sites = values[:, :-1] if values.shape[1] > 1 else values
    if over == "below one" and sites.shape[1] > 1:
        sites = sites[:, 1:]
    return _median(sites)


def _median(sites: Floats) -> Floats:
    """Over sites, without those that have no value at any step, such as one without a norm. [T, L] -> [T]"""
    measured = sites[:, ~np.isnan(sites).all(axis=0)]
    return np.median(measured, axis=1) if measured.shape[1] else np.full(len(sites), math.nan)


def _register(
    name: str, over: Over, meaning: str, source: str, unit: str, reads: str = "", first: bool = False
) -> None:
    """Register the median over equally spaced steps, or with `first` the value at step 0, of the measurement `reads`,
    else `name`."""
    measurement = reads or name
    sites = {"hidden": "hidden sites", "below one": "hidden sites but the first", "net": ""}[over]
    averaged = " and ".join(filter(None, ("" if first else "measured steps", sites)))

    def course(run: Run) -> Series:
        raw = run.series(measurement)
        return Series(raw.steps, over_sites(raw.values, over))

    def value(run: Run) -> float:
        raw = run.spaced(measurement)
        values = over_sites(raw.values, over)
        if first:
            return float(values[0]) if len(values) and raw.steps[0] == 0 else math.nan
        return over_finite(np.median, values)

    facts = {"meaning": f"{meaning}; median over {averaged}", "source": source, "unit": unit}
    METRICS.register(name, of="run", reads=(measurement,), course=course, **facts)(value)


LANDSCAPE = "Santurkar et al. 2018, figure 4 and appendix A.2.2"
SHIFT = "Santurkar et al. 2018, definition 2.1 and figure 3"
DRIFT = "Ioffe & Szegedy 2015, section 4.1; Santurkar et al. 2018, figure 8"
INITIAL = "Bjorck et al. 2018, table 1, at initialization"
WU = "Wu & Johnson 2021"
LUO = "Luo et al. 2019"
ARORA = "Arora, Li & Lyu 2018, lemma 2.4 and section 3"
SD = "standard deviations"
for _row in (
    # name, over which sites, meaning, source, unit, the measurement if it has another name
    ("drift_pre", "hidden", "drift of the channel means since the last measurement, where the norm looks, on the fixed "
     "probe batch", DRIFT, SD, "drift_mean.pre"),
    ("drift_act_in", "hidden", "drift of the channel means since the last measurement, at the nonlinearity's input, "
     "where batch norm fixes the moments by construction", DRIFT, SD, "drift_mean.act_in"),
    ("drift_total_pre", "hidden", "drift of the channel means since step 0, where the norm looks", DRIFT, SD,
     "drift_mean_total.pre"),
    ("drift_logvar_pre", "hidden", "change of the log variances since the last measurement, where the norm looks",
     DRIFT, "log", "drift_logvar.pre"),
    ("sampling_floor_pre", "hidden", "distance of the channel means of two halves of the probe batch at equal weights",
     "what sampling alone gives", SD, "sampling_floor.pre"),
    ("loss_range", "net", "range of the loss along the gradient over the loss", LANDSCAPE, "1"),
    ("grad_change", "net", "largest change of the gradient along it", LANDSCAPE, "gradient"),
    ("grad_change_rel", "net", "largest change of the gradient along it, over its norm", LANDSCAPE, "1"),
    ("eta_beta_half", "net", "effective smoothness along the gradient in units of 2 / lr; near 1 with and without a "
     "norm, so reported rather than judged", LANDSCAPE, "1"),
    ("eta_lambda_half", "net", "largest eigenvalue of the loss's Hessian in units of 2 / lr",
     "Cohen et al. 2021, the edge of stability", "1"),
    ("ics", "below one", "change of the gradient by the update of the layers below", SHIFT, "gradient"),
    ("ics_rel", "below one", "change of the gradient by the update of the layers below, over its norm", SHIFT, "1"),
    ("ics_cos", "below one", "cosine of the gradients before and after the update of the layers below", SHIFT,
     "cosine"),
    ("grad_noise", "net", "distance of the gradients of two half-batches over the norm of their sum",
     "Bjorck et al. 2018, section 3: the noise of the gradient", "1"),
    ("first_over_last", "net", "gradient's norm at the first affine weight over that at the last",
     "Ioffe & Szegedy 2015, section 1: vanishing gradients", "1"),
    ("update_ratio", "hidden", "norm of a weight's update over the weight's norm",
     "Arora, Li & Lyu 2019: the effective learning rate", "1"),
    ("propagation", "hidden", "relative change of the pre-activations by a random change of the first weight of 0.001",
     "Ioffe & Szegedy 2015, section 1: small changes amplify with depth", "1", "propagation.random"),
    ("gram_rank", "hidden", "rank r(H) of a layer's outputs on the probe batch", "Daneshmand et al. 2020", "1"),
    ("dead_fraction", "hidden", "share of ReLU channels that are zero on the whole probe batch", "dead units", "share"),
    ("bn_mean_gap", "hidden", "distance of the running means from the population's", WU, SD),
    ("bn_var_gap", "hidden", "distance of the logs of the running variances from the population's", WU, "log"),
    ("bn_mean_noise", "hidden", "standard deviation of a batch's mean over that of independent values", LUO, "1"),
    ("bn_sd_noise", "hidden", "standard deviation of a batch's sd over that of independent values", LUO, "1"),
    ("bn_mean_sd", "hidden", "standard deviation of a batch's mean", LUO, SD),
    ("channel_scaled", "hidden", "relative change of the outputs where one channel is ten times itself", "bnlab", "1"),
    ("channel_removed", "hidden", "relative change of the outputs where one channel is its mean",
     "Morcos et al. 2018, section 2", "1"),
    ("weight_grad_cos", "hidden", "cosine of an affine weight and its gradient", ARORA, "cosine"),
    ("norm_law_error", "hidden", "error of the law by which a weight's norm grows", ARORA, "1"),
    ("effective_lr", "hidden", "learning rate over the squared norm of an affine weight", ARORA, "1"),
    ("weight_angle", "hidden", "angle by which an affine weight turns a step", "Wan et al. 2021; Kosson et al. 2024",
     "radians"),
    ("abs_over_sum", "hidden", "how far the terms of an affine weight's gradient cancel, at step 0", INITIAL, "1", "",
     True),
    ("grad_kurtosis", "hidden", "excess kurtosis of the entries of an affine weight's gradient, at step 0", INITIAL,
     "1", "", True),
):  # fmt: skip
    _register(*_row)


Sites = Literal["hidden", "first", "last", "all"] | Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
Window = Annotated[list[Annotated[float, Ge(0), Le(1)]], MinLen(2), MaxLen(2)]
"""From and to which share of the run: [0.5, 1] is its second half, [0, 0] step 0."""
STATISTICS: dict[str, Callable[[Floats], Any]] = {
    "median": np.median,
    "mean": np.mean,
    "max": np.max,
    "p90": functools.partial(np.quantile, q=0.9),
    "last": lambda values: values[-1],
}


def at_sites(raw: Series, sites: Sites) -> Series:
    """The series at these sites, the median over several; `last`: the last hidden one. One value a step is as it is."""
    if raw.values.ndim == 1 or sites == "hidden":
        return Series(raw.steps, over_sites(raw.values, "hidden"))
    count = raw.values.shape[1]
    named: dict[str, list[int]] = {"first": [0], "last": [max(0, count - 2)], "all": list(range(count))}
    chosen = [index for index in (named[sites] if isinstance(sites, str) else sites) if index < count]
    return Series(raw.steps, _median(raw.values[:, chosen]))


def within(run: Run, raw: Series, window: Window) -> Series:
    """Its steps in this part of the run."""
    low, high = (share * run.steps for share in window)
    kept = (raw.steps >= low) & (raw.steps <= high)
    return Series(raw.steps[kept], raw.values[kept])


def _course(run: Run, *, of: str, sites: Sites) -> Series:
    return at_sites(run.series(of), sites)


@METRICS.register(
    "course",
    of="run",
    source="the measurement's own",
    unit="that of the measurement",
    course=_course,
    of_measurement=True,
)
def course(
    run: Run,
    *,
    of: Annotated[str, MinLen(1)],
    sites: Sites,
    window: Window,
    over: Literal["median", "mean", "max", "p90", "last"],
) -> float:
    """Any measurement `of` the journal, at `sites`, over the equally spaced steps of a `window` of the run.

    At equal training losses, every measured step counts."""
    return over_finite(STATISTICS[over], within(run, at_sites(run.spaced(of), sites), window).values)


CONSTANT = 1e-6
"""A log that varies by no more than this over the sites is a constant: the rest is rounding in float32."""


@METRICS.register(
    "growth", of="run", source="Yang et al. 2019, section 4: exponential in depth", unit="1", of_measurement=True
)
def growth(
    run: Run,
    *,
    of: Annotated[str, MinLen(1)],
    power: float,
    direction: Literal["up", "down"],
    window: Window,
    skip_first: Annotated[int, Ge(0)],
    skip_last: Annotated[int, Ge(0)],
) -> float:
    """Growth per layer of the measurement `of` to this `power`, towards the output or `down` to the input: exp of the
    slope of its log over the hidden sites, by least squares, without the first `skip_first` and the last `skip_last`;
    median over the equally spaced steps of a `window` of the run."""
    logs, x = _by_layer(run, of, window, skip_first, skip_last)
    return over_finite(np.median, np.exp((power if direction == "up" else -power) * (logs @ x / (x @ x))))


@METRICS.register(
    "growth_fit",
    of="run",
    source="coefficient of determination R^2",
    unit="share",
    better="higher",
    of_measurement=True,
)
def growth_fit(
    run: Run,
    *,
    of: Annotated[str, MinLen(1)],
    window: Window,
    skip_first: Annotated[int, Ge(0)],
    skip_last: Annotated[int, Ge(0)],
) -> float:
    """How exponential in depth the measurement `of` is: the share of the variance of its log over the hidden sites,
    without the first `skip_first` and the last `skip_last`, that the line of `growth` explains; median over the equally
    spaced steps of a `window` of the run. Not measured where it is the same at all sites, to a millionth."""
    logs, x = _by_layer(run, of, window, skip_first, skip_last)
    logs = logs[np.ptp(logs, axis=1) > CONSTANT]
    around = logs - logs.mean(axis=1, keepdims=True)
    return over_finite(np.median, (logs @ x) ** 2 / (x @ x) / (around**2).sum(axis=1))


def _by_layer(run: Run, of: str, window: Window, skip_first: int, skip_last: int) -> tuple[Floats, Floats]:
    """Logs of the measurement at the steps of the window at which all of these sites have one, [T, hidden], and the
    sites' places around their mean, [hidden]; without steps where there are fewer than two sites."""
    raw = within(run, run.spaced(of), window)
    values = raw.values if raw.values.ndim > 1 else raw.values[:, None]
    hidden = values[:, skip_first : max(0, values.shape[1] - 1 - skip_last)]
    kept = hidden[(hidden > 0).all(axis=1)] if hidden.shape[1] > 1 else np.empty((0, 2))
    return np.log(kept), np.arange(kept.shape[1]) - (kept.shape[1] - 1) / 2


@METRICS.register(
    "gradient_growth",
    of="run",
    source="Yang et al. 2019, theorem 8 (bnlab.core.theory.gradient_growth has the closed form)",
    unit="1",
    reads=("delta_norm",),
    shown_with={"skip_first": 0, "skip_last": 0},
)
def gradient_growth(run: Run, *, skip_first: Annotated[int, Ge(0)], skip_last: Annotated[int, Ge(0)]) -> float:
    """Growth per layer, towards the input, of the squared norm of the gradient at the pre-activations, at step 0:
    geometric mean over the hidden layers without the first `skip_first` and the last `skip_last`."""
    raw = run.series("delta_norm")
    if not len(raw) or raw.steps[0] != 0:
        return math.nan
    norms = raw.values[0, :-1]  # [hidden]
    kept = norms[skip_first : len(norms) - skip_last]
    if len(kept) < 2 or not (kept > 0).all():
        return math.nan
    return float((kept[0] / kept[-1]) ** (2 / (len(kept) - 1)))


@METRICS.register(
    "thm41_error",
    of="run",
    source="Santurkar et al. 2018, theorem 4.1",
    unit="1",
    better="lower",
    reads=("thm41_error",),
)
def thm41_error(run: Run) -> float:
    """Largest relative error of theorem 4.1 as an equality, over steps, sites and channels."""
    return over_finite(np.max, run.series("thm41_error").values)


@METRICS.register(
    "drift50",
    of="run",
    source="Ioffe & Szegedy 2015, figure 1b and 1c",
    unit="widths of the distribution",
    reads=("drift50.act_in",),
)
def drift50(run: Run) -> float:
    """Of the input of the last hidden nonlinearity, over the whole run but for its first measurement: median over units
    of max less min of the unit's median over the probe batch, over the distance of its 15th and 85th percentiles at
    the end."""
    values = run.series("drift50.act_in").values
    return float(values[-1, max(0, values.shape[1] - 2)]) if len(values) else math.nan
