"""Which metric is shown under which tag.

Natural metric names would bury the loss under hundreds of cards (TensorBoard sorts groups by name, and opens only the
first), so in TensorBoard, and only there, metrics get numbered groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnlab.record.journal import Record

PROGRESS = {
    "train_loss": "1_progress/loss",
    "train_accuracy": "1_progress/accuracy",
    "test_loss": "1_progress/eval_loss",
    "test_accuracy": "1_progress/eval_accuracy",
    "lr": "1_progress/lr",
    "grad_norm_total": "4_grad_norm/00_total",
    "first_over_last": "4_grad_norm/00_first_over_last",
    "grad_noise": "4_grad_norm/00_noise",
    **{
        f"{prefix}{name}": f"5_landscape/{prefix}{name}"
        for prefix in ("", "random_")
        for name in ("loss_lo", "loss_hi", "loss_range", "grad_change", "grad_change_rel", "eta_beta_half")
    },
    "lambda_max": "5_sharpness/lambda_max",
    "eta_lambda_half": "5_sharpness/eta_lambda_half",
    **{f"lambda_{rank}": f"5_sharpness/lambda_{rank}" for rank in range(2, 11)},
}
"""Scalars."""

GROUPS = {
    "drift_mean": "2_drift_mean",
    "drift_mean_total": "2_drift_mean_total",
    "drift50": "2_drift_median",
    "drift_logvar": "3_drift_logvar",
    "drift_logvar_total": "3_drift_logvar_total",
    "grad_norm": "4_grad_norm",
    "delta_norm": "4_grad_norm_delta",
    "update_ratio": "4_grad_norm_update_ratio",
    "abs_over_sum": "4_gradient_abs_over_sum",
    "grad_kurtosis": "4_gradient_kurtosis",
    "ics": "5_ics",
    "ics_rel": "5_ics_rel",
    "ics_cos": "5_ics_cos",
    "thm41_error": "5_lipschitz_error",
    "thm41_raw": "5_lipschitz_raw",
    "thm41_mean": "5_lipschitz_mean",
    "thm41_corr": "5_lipschitz_corr",
    "bn_mean_gap": "5_bn_mean_gap",
    "bn_var_gap": "5_bn_var_gap",
    "bn_mean_noise": "5_bn_noise_of_mean",
    "bn_sd_noise": "5_bn_noise_of_sd",
    "bn_gamma_mean": "5_bn_gamma_mean",
    "bn_gamma_sd": "5_bn_gamma_sd",
    "bn_beta_mean": "5_bn_beta_mean",
    "bn_beta_sd": "5_bn_beta_sd",
    "act_mean": "7_act_mean",
    "batch_mean": "7_batch_mean",
    "act_var": "8_act_var",
    "batch_var": "8_batch_var",
    "dead_fraction": "8_dead_units",
}
"""One value a site: a median over the sites, then every site."""

PERCENTILES = {"act_p15": "p15", "act_p50": "p50", "act_p85": "p85"}
"""Of the first, the middle and the last hidden site only."""

LIGHT = (
    "1_progress/loss",
    "1_progress/accuracy",
    "1_progress/eval_loss",
    "1_progress/eval_accuracy",
    "1_progress/lr",
    "2_drift_mean_pre/00_median_of_layers",
    "3_drift_logvar_pre/00_median_of_layers",
    "4_grad_norm/00_total",
    "4_grad_norm/00_first_over_last",
    "5_landscape/loss_range",
    "5_landscape/grad_change_rel",
    "5_sharpness/lambda_max",
)
"""What the light profile shows of a run, as far as the run has it: one line each, nothing by layer."""

FULL_RUNS = 50
"""Of more runs than these, TensorBoard is shown the light profile alone."""

Source = tuple[str, str, int | None]
"""A tag, the metric it shows, and which value of it: a site's index, None for the median of the sites, -1 for a
scalar."""


def tags(record: Record, sites: Sequence[str]) -> list[Source]:
    """What a record shows, under which tags."""
    found: list[Source] = []
    for metric, value in record.items():
        name, _, point = metric.partition(".")
        suffix = f"_{point}" if point else ""
        if metric in ("step",) or metric.endswith("_s") or name == "histogram":
            continue
        if metric in PROGRESS or _is_scalar(value):
            found.append((PROGRESS.get(metric, f"5_other/{metric}"), metric, -1))
        elif name == "sampling_floor":
            found.append((f"2_drift_mean{suffix}/00_sampling_floor", metric, None))
        elif name in PERCENTILES:
            shown = sorted({0, max(0, len(sites) - 2) // 2, max(0, len(sites) - 2)})
            found += [(f"6_act_percentiles{suffix}/{sites[i]}_{PERCENTILES[name]}", metric, i) for i in shown]
        else:
            group = GROUPS.get(name, f"5_{name}") + suffix
            found.append((f"{group}/00_median_of_layers", metric, None))
            found += [(f"{group}/{site}", metric, index) for index, site in enumerate(sites)]
    return sorted(found)


def _is_scalar(value: Any) -> bool:
    return value is None or not hasattr(value, "__len__")
