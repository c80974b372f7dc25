"""Metrics of one run that summarize what its probes measured. Legend: T measured steps, L sites.

Each has a course, a value at every step at which it was measured, and a figure, the course's median over the steps: a
median, since single batches give spikes of any height. Where it has a value a site, the
course is the median over the hidden sites, which are all but the head; of a net with a single site, over that one.

What was measured of a run that diverged counts up to its divergence.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from bnlab.analysis.base import METRICS, Metric, Value
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run

Over = Literal["hidden", "below one", "net"]


def _over_sites(values: Floats, over: Over) -> Floats:
    """[T, L] -> [T]. `below one`: the hidden sites but for the first, which has no site before it."""
    if over == "net" or values.ndim == 1:
        return values
    sites = values[:, :-1] if values.shape[1] > 1 else values
    if over == "below one" and sites.shape[1] > 1:
        sites = sites[:, 1:]
    # A site that has no value at any step, such as one without a norm, has no part in it.
    measured = sites[:, ~np.isnan(sites).all(axis=0)]
    return np.median(measured, axis=1) if measured.shape[1] else np.full(len(values), math.nan)


def _median(course: Series) -> float:
    finite = course.values[np.isfinite(course.values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _course(name: str, reads: str, over: Over, meaning: str, source: str, unit: str) -> None:
    def course(run: Run) -> Series:
        raw = run.series(reads)
        return Series(raw.steps, _over_sites(raw.values, over))

    def figure(run: Run) -> Value:
        return Value(_median(course(run)))

    where = {"hidden": " and hidden sites", "below one": " and hidden sites but the first", "net": ""}[over]
    METRICS.add(
        Metric(
            name=name,
            of="run",
            figure=figure,
            course=course,
            meaning=f"{meaning}; median over measured steps{where}",
            source=source,
            unit=unit,
            better=None,
            reads=(reads,),
        )
    )


def _first(name: str, meaning: str) -> None:
    def course(run: Run) -> Series:
        raw = run.series(name)
        return Series(raw.steps, _over_sites(raw.values, "hidden"))

    def figure(run: Run) -> Value:
        found = course(run)
        return Value(float(found.values[0]) if len(found) and found.steps[0] == 0 else math.nan)

    METRICS.add(
        Metric(
            name=name,
            of="run",
            figure=figure,
            course=course,
            meaning=f"{meaning}, at step 0; median over hidden sites",
            source="Bjorck et al. 2018, table 1, at initialization",
            unit="1",
            better=None,
            reads=(name,),
        )
    )


LANDSCAPE = "Santurkar et al. 2018, figure 4 and appendix A.2.2"
SHIFT = "Santurkar et al. 2018, definition 2.1 and figure 3"
DRIFT = "Ioffe & Szegedy 2015, section 4.1; Santurkar et al. 2018, figure 8"
for _row in (
    ("drift_pre", "drift_mean.pre", "hidden", "drift of the channel means since the last measurement, where the norm "
     "looks, on the fixed probe batch", DRIFT, "standard deviations"),
    ("drift_act_in", "drift_mean.act_in", "hidden", "drift of the channel means since the last measurement, at the "
     "nonlinearity's input, where batch norm fixes the moments by construction", DRIFT, "standard deviations"),
    ("drift_total_pre", "drift_mean_total.pre", "hidden", "drift of the channel means since step 0, where the "
     "norm looks", DRIFT, "standard deviations"),
    ("drift_logvar_pre", "drift_logvar.pre", "hidden", "change of the log variances since the last measurement, where "
     "the norm looks", DRIFT, "log"),
    ("sampling_floor_pre", "sampling_floor.pre", "hidden", "distance of the channel means of two halves of the probe "
     "batch at equal weights", "what sampling alone gives", "standard deviations"),
    ("loss_range", "loss_range", "net", "range of the loss along the gradient over the loss", LANDSCAPE, "1"),
    ("grad_change", "grad_change", "net", "largest change of the gradient along it", LANDSCAPE, "gradient"),
    ("grad_change_rel", "grad_change_rel", "net", "largest change of the gradient along it, over its norm", LANDSCAPE,
     "1"),
    ("eta_beta_half", "eta_beta_half", "net", "effective smoothness along the gradient in units of 2 / lr; near 1 with "
     "and without a norm, so reported rather than judged", LANDSCAPE, "1"),
    ("eta_lambda_half", "eta_lambda_half", "net", "largest eigenvalue of the loss's Hessian in units of 2 / lr",
     "Cohen et al. 2021, the edge of stability", "1"),
    ("ics", "ics", "below one", "change of the gradient by the update of the layers below", SHIFT, "gradient"),
    ("ics_rel", "ics_rel", "below one", "change of the gradient by the update of the layers below, over its norm",
     SHIFT,
     "1"),
    ("ics_cos", "ics_cos", "below one", "cosine of the gradients before and after the update of the layers below",
     SHIFT, "cosine"),
    ("grad_noise", "grad_noise", "net", "distance of the gradients of two half-batches over the norm of their sum",
     "Bjorck et al. 2018, section 3: the noise of the gradient", "1"),
    ("first_over_last", "first_over_last", "net", "gradient's norm at the first affine weight over that at the last",
     "Ioffe & Szegedy 2015, section 1: vanishing gradients", "1"),
    ("update_ratio", "update_ratio", "hidden", "norm of a weight's update over the weight's norm",
     "Arora, Li & Lyu 2019: the effective learning rate", "1"),
    ("dead_fraction", "dead_fraction", "hidden", "share of ReLU channels that are zero on the whole probe batch",
     "dead units", "share"),
    ("bn_mean_gap", "bn_mean_gap", "hidden", "distance of the running means from the population's",
     "Wu & Johnson 2021", "standard deviations"),
    ("bn_var_gap", "bn_var_gap", "hidden", "distance of the logs of the running variances from the population's",
     "Wu & Johnson 2021", "log"),
    ("bn_mean_noise", "bn_mean_noise", "hidden", "standard deviation of a batch's mean over that of independent values",
     "Luo et al. 2019", "1"),
    ("bn_sd_noise", "bn_sd_noise", "hidden", "standard deviation of a batch's sd over that of independent values",
     "Luo et al. 2019", "1"),
):  # fmt: skip
    _course(*_row)


@METRICS.register(
    "drift50",
    of="run",
    meaning="of the input of the last hidden nonlinearity, over the whole run but for its first measurement: median "
    "over units of max less min of the unit's median over the probe batch, over the distance of its 15th and 85th "
    "percentiles at the end",
    source="Ioffe & Szegedy 2015, figure 1b and 1c",
    unit="widths of the distribution",
    better=None,
    reads=("drift50.act_in",),
)
def drift50(run: Run) -> Value:
    values = run.series("drift50.act_in").values
    return Value(float(values[-1, max(0, values.shape[1] - 2)]) if len(values) else math.nan)


for _name, _meaning in (
    ("abs_over_sum", "how far the terms of an affine weight's gradient cancel"),
    ("grad_kurtosis", "excess kurtosis of the entries of an affine weight's gradient"),
):
    _first(_name, _meaning)


@METRICS.register(
    "gradient_growth",
    of="run",
    meaning="geometric mean over the hidden layers, but for the first `skip_first` and the last `skip_last`, of the "
    "growth of the squared norm of the gradient at the pre-activations from a layer to the one below it, at step 0",
    source="Yang et al. 2019, theorem 8 (bnlab.core.theory.gradient_growth has the closed form)",
    unit="1",
    better=None,
    reads=("delta_norm",),
    shown_with={"skip_first": 0, "skip_last": 0},
)
def gradient_growth(run: Run, *, skip_first: Annotated[int, Ge(0)], skip_last: Annotated[int, Ge(0)]) -> Value:
    raw = run.series("delta_norm")
    if not len(raw) or raw.steps[0] != 0:
        return Value(math.nan)
    norms = raw.values[0, :-1]  # [hidden]
    kept = norms[skip_first : len(norms) - skip_last]
    if len(kept) < 2 or not (kept > 0).all():
        return Value(math.nan)
    return Value(float((kept[0] / kept[-1]) ** (2 / (len(kept) - 1))))


@METRICS.register(
    "thm41_error",
    of="run",
    meaning="largest relative error of theorem 4.1 as an equality, over steps, sites and channels",
    source="Santurkar et al. 2018, theorem 4.1",
    unit="1",
    better="lower",
    reads=("thm41_error",),
)
def thm41_error(run: Run) -> Value:
    values = run.series("thm41_error").values
    finite = values[np.isfinite(values)]
    return Value(float(finite.max()) if len(finite) else math.nan)
