"""The Custom Scalars page of a comparison: which charts stand in which row."""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Sequence

from bnlab.board.compare.series import AROUND, PLACES, PROFILES, UNITS
from bnlab.board.layout import Band, Category, Lines

SEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "Loss and accuracy": (
        ("log10 training loss", "1_progress/log10_loss"),
        ("log10 test loss", "1_progress/log10_eval_loss"),
        ("test accuracy", "1_progress/eval_accuracy"),
    ),
    "Landscape along the gradient": (
        ("log10 change of the gradient", "5_landscape/log10_grad_change"),
        ("log10 of it over the gradient's norm", "5_landscape/log10_grad_change_rel"),
    ),
    "Drift and gradients": (
        ("log10 drift of means, before the norm", "2_drift_mean_pre/00_log10_median_of_layers"),
        ("log10 drift, what activations see", "2_drift_mean_act_in/00_log10_median_of_layers"),
        ("log10 norm of the gradient", "4_grad_norm/00_log10_total"),
    ),
}
"""Row -> titles and tags of means over seeds, each with its interval around it. What spans decades is shown as its
logarithm: the page has no address for a logarithmic axis."""
DEPTH = {
    "drift_mean.pre": "log10 drift of means, layer by layer (x axis: layer, the last is the head)",
    "grad_norm": "log10 gradient norm, layer by layer (x axis: layer, the last is the head)",
    "act_var.pre": "log10 variance of pre-activations, layer by layer (x axis: layer, the last is the head)",
}


def page(tags: AnyOf[str], *, band: str, layers: Sequence[str], moments: Sequence[float]) -> list[Category]:
    """Rows of charts, as far as a run has the `tags` for them. `band` says what intervals are; `layers` how the first,
    the middle and the last hidden layer are called; `moments` are the steps of depth profiles."""
    rows: list[Category] = []
    for title, charts in SEEDS.items():
        bands = [Band(title=name, value=tag, low=f"{tag}.lo", high=f"{tag}.hi") for name, tag in charts]
        if title.startswith("Landscape"):
            value, low, high = AROUND
            bands.insert(0, Band(title="log10 loss; band: within reach of a step", value=value, low=low, high=high))
        if there := tuple(chart for chart in bands if set(chart.tags) <= set(tags)):
            rows.append(Category(title=f"{title}; band: {band}", charts=there))
    group = "6_act_percentiles_act_in"
    units = [
        Lines(title=layer, tags=tuple(f"{group}/{place}_{suffix}" for suffix in UNITS.values()))
        for place, layer in zip(PLACES, layers, strict=True)
    ]
    if lines := tuple(chart for chart in units if set(chart.tags) <= set(tags)):
        about = "Percentiles 15, 50, 85 of what one activation sees (Ioffe & Szegedy 2015, figure 1)"
        rows.append(Category(title=about, charts=lines))
    for metric, title in DEPTH.items():
        named = [
            Lines(title=f"at step {moment:.0f}", tags=(f"{PROFILES[metric]}_{place}",))
            for place, moment in zip(PLACES, moments, strict=True)
        ]
        if lines := tuple(chart for chart in named if set(chart.tags) <= set(tags)):
            rows.append(Category(title=title, charts=lines))
    return [Category(title=f"{number}. {row.title}", charts=row.charts) for number, row in enumerate(rows, 1)]
