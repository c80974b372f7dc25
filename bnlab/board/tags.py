"""Which measurement is shown under which TensorBoard tag.

TensorBoard sorts groups of cards by name and opens only the first, so the journal's names would bury the loss under
hundreds of cards. The groups here have numbers. Each probe declares those of its measurements (probes/base.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.core.registry import PROBES
from bnlab.record.journal import Record

OF_THE_LOOP = {
    "train_loss": "1_progress/train_loss",
    "train_accuracy": "1_progress/train_accuracy",
    "test_loss": "1_progress/test_loss",
    "test_accuracy": "1_progress/test_accuracy",
    "lr": "1_progress/lr",
}
"""Tags of what the training loop measures itself."""

LIGHT = (
    *OF_THE_LOOP.values(),
    "2_drift_mean_pre/00_median_of_layers",
    "3_drift_logvar_pre/00_median_of_layers",
    "4_grad_norm/00_total",
    "4_grad_norm/00_first_over_last",
    "5_landscape/loss_range",
    "5_landscape/grad_change_rel",
    "5_sharpness/lambda_max",
)
"""The tags of the light profile, as far as a run has them: scalars and medians over the layers."""

ASIDE = "figures"
"""The run of a comparison that has what belongs to no line: the layout, figures, verdicts."""

FULL_RUNS = 50
"""Above this number of runs, event files have the light profile."""

Source = tuple[str, str, int | None]
"""A tag, the measurement it shows, and which value of it: the index of a site, None for the median over the sites, -1
for a scalar."""


def tags(record: Record, sites: Sequence[str]) -> list[Source]:
    """What a record shows, under which tags."""
    groups = OF_THE_LOOP | declared_groups()
    found: list[Source] = []
    for metric, value in record.items():
        name, _, point = metric.partition(".")
        if metric == "step" or metric.endswith("_s") or name == "histogram":
            continue
        is_scalar = value is None or not hasattr(value, "__len__")
        if is_scalar and name not in groups:
            found.append((f"5_other/{metric}", metric, -1))
            continue
        group, _, card = groups.get(name, f"5_{name}").partition("/")
        group += f"_{point}" if point else ""
        if is_scalar:
            found.append((f"{group}/{card or name}", metric, -1))
        elif "*" in card:
            shown = sorted(set(hidden_sites(len(sites))))
            found += [(f"{group}/{card.replace('*', sites[index])}", metric, index) for index in shown]
        else:
            found.append((f"{group}/{card or '00_median_of_layers'}", metric, None))
            found += [(f"{group}/{site}", metric, index) for index, site in enumerate(sites) if not card]
    return sorted(found)


def hidden_sites(count: int) -> tuple[int, int, int]:
    """The first, the middle and the last hidden site of `count`, of which the last is the head.

    >>> hidden_sites(11), hidden_sites(1)
    ((0, 4, 9), (0, 0, 0))
    """
    last = max(0, count - 2)
    return 0, last // 2, last


def declared_groups() -> dict[str, str]:
    """Measurement -> group, as the probes declare them: bnlab's own, and those of plugins that are loaded."""
    return {
        name: group for probe in PROBES.entries() for name, group in getattr(probe.constructor, "groups", {}).items()
    }
