"""Medians over a run's steps of what its probes measured. Legend: T measured steps, L sites.

A median, since single batches give spikes of any height. Each metric has a course, its value at every measured step.
Where a measurement has a value a site, the course is the median over the hidden sites, which are all but the head; of a
net with a single site, over that one. What was measured of a run that diverged counts up to its divergence.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from bnlab.analysis.metrics import METRICS
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
    # A site without a value at any step, such as one without a norm, does not count.
    measured = sites[:, ~np.isnan(sites).all(axis=0)]
    return np.median(measured, axis=1) if measured.shape[1] else np.full(len(values), math.nan)


def _median(name: str, reads: str, over: Over, meaning: str, source: str, unit: str) -> None:
    """Register the median over steps of the measurement `reads`."""
    where = {"hidden": " and hidden sites", "below one": " and hidden sites but the first", "net": ""}[over]

    def course(run: Run) -> Series:
        raw = run.series(reads)
        return Series(raw.steps, over_sites(raw.values, over))

    @METRICS.register(
        name,
        of="run",
        meaning=f"{meaning}; median over measured steps{where}",
        source=source,
        unit=unit,
        reads=(reads,),
        course=course,
    )
    def median(run: Run) -> float:
        values = course(run).values
        finite = values[np.isfinite(values)]
        return float(np.median(finite)) if len(finite) else math.nan


LANDSCAPE = "Santurkar et al. 2018, figure 4 and appendix A.2.2"
SHIFT = "Santurkar et al. 2018, definition 2.1 and figure 3"
DRIFT = "Ioffe & Szegedy 2015, section 4.1; Santurkar et al. 2018, figure 8"
for _row in (
    # name, the measurement that it reads, over which sites, meaning, source, unit
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
     SHIFT, "1"),
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
    _median(*_row)
