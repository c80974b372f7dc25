"""Norm of the gradient at the pre-activations against depth, before the first step, with Yang et al.'s rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.core.text import count, listed
from bnlab.core.theory import gradient_growth
from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import HALO, Chart, around, layer_ticks, log_ticks, open_marker
from bnlab.report.style import INK
from bnlab.report.views import Drawn, Floats, Group, Missing, View, finite, geometric

METRIC = "delta_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthProfile:
    """One arm: norms [L] relative to the last hidden layer's, geometric mean and range over `seeds` nets; `rate`:
    growth a layer towards the input; `theory`: what it is in a wide net, where there is a closed form."""

    group: Group
    mean: Floats
    low: Floats
    high: Floats
    seeds: int
    rate: float
    theory: float | None


def start(run: Run) -> Floats | None:
    """Norms [L] of the hidden layers at step 0, over that of the last of them; None where they were not measured. The
    head is left out: no norm and no nonlinearity follow it."""
    steps, values = run.series(METRIC)
    if not len(steps) or steps[0] != 0 or values.ndim != 2 or values.shape[1] < 3:
        return None
    hidden = values[0, :-1]
    return hidden / hidden[-1] if np.isfinite(hidden).all() and (hidden > 0).all() else None


def closed_form(run: Run) -> float | None:
    """Growth of the norm a layer by Yang et al. 2019, theorem 8, where its net is the run's: every layer normalized
    over the batch before the nonlinearity."""
    spec, batch = run.spec, run.spec.get("data.batch_size")
    fits = (
        spec.get("norm") in ("batch", "batch_reference", "l2")
        and spec.get("norm.layers") == "all"
        and spec.get("norm.every") == 1
        and spec.get("norm.position") == "before"
        and spec.get("model") == "mlp"
        and spec.get("model.activation") in ("relu", "linear")
    )
    if not fits or not isinstance(batch, int) or batch < 4:
        return None
    return math.sqrt(gradient_growth(batch, spec["model.activation"]))


def profile(group: Group) -> DepthProfile | None:
    """Of one net a seed: at step 0 the learning rate does not matter."""
    first = {run.seed: run for run in sorted(group.runs, key=lambda run: -run.lr)}
    norms = {seed: norm for seed, run in sorted(first.items()) if (norm := start(run)) is not None}
    if not norms:
        return None
    stack = np.stack(list(norms.values()))
    mean = geometric(stack)
    return DepthProfile(
        group=group,
        mean=mean,
        low=stack.min(axis=0),
        high=stack.max(axis=0),
        seeds=len(norms),
        rate=float(mean[0]) ** (1 / (len(mean) - 1)),
        theory=closed_form(group.runs[0]),
    )


def headline(view: View, profiles: list[DepthProfile]) -> str:
    """The growth a layer, of the arm where it is strongest and of the one where it is weakest, of the pair if there is
    one."""

    def grows(p: DepthProfile) -> str:
        if abs(math.log(p.rate)) < math.log(1.02):
            return "stay level"
        return f"grow {p.rate:.2f}×" if p.rate > 1 else f"shrink {1 / p.rate:.2f}×"

    if view.pair is not None:
        named = [p for p in profiles if p.group.label in (view.pair[0].label, view.pair[1].label)]
        profiles = named if len(named) == 2 else profiles
    first = max(profiles, key=lambda p: abs(math.log(p.rate)))
    last = min(profiles, key=lambda p: abs(math.log(p.rate)))
    words = f"{grows(first)} a layer" if "×" in grows(first) else grows(first)
    what = f"Towards the input, norms of gradients at step 0 {words}"
    if first is last:
        return f"{what} ({first.group.label})"
    return f"{what} with {first.group.label}; they {grows(last)} with {last.group.label}"


@FIGURES.register("gradient_depth", order=6, subject="gradient norm against depth at step 0")
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: the norms were not measured, or there are fewer than two hidden layers.
    """
    profiles = [found for group in view.groups if (found := profile(group)) is not None]
    if not profiles:
        raise Missing("no gradient norms of two or more hidden layers at step 0", "measure them: probes=economy")
    theories = {p.theory: p.group.label for p in profiles if p.theory is not None}
    note = (
        f"‖∂L/∂pre‖ of each hidden layer at step 0, over that of the last; line: geometric mean of "
        f"{count(profiles[0].seeds, 'net')}, band: smallest to largest."
    )
    if theories:
        rates = listed([f"{rate:.3f} a layer ({label})" for rate, label in theories.items()])
        note += f" Dotted: {rates}, Yang et al. 2019, theorem 8, wide nets with these batches."
    chart = Chart(view, headline(view, profiles), note, [group.label for group in view.groups])
    ax = chart.ax
    depth = max(len(p.mean) for p in profiles)
    layers = np.arange(float(depth))
    dotted = {rate: rate ** (depth - 1 - layers) for rate in theories}
    log_ticks(ax, *around(finite(np.concatenate([*(x for p in profiles for x in (p.low, p.high)), *dotted.values()]))))
    ax.set_xlim(-0.03 * depth, depth - 1 + 0.03 * depth)
    ax.set_xticks(layer_ticks(depth) if depth > 10 else range(depth))
    ax.set_xlabel("hidden layer (0 = first)")
    ax.set_ylabel(f"gradient norm, relative to layer {depth - 1}")
    for p in profiles:
        x, look = layers[: len(p.mean)], p.group.look
        ax.fill_between(x, p.low, p.high, color=look.color, alpha=0.18, linewidth=0)
        chart.line(x, p.mean, look)
        ax.plot(x, p.mean, zorder=4, **open_marker(look))
        chart.name(p.group.label, look, 1, p.mean[1])  # at the last layer, all lines meet at 1
    for line in dotted.values():
        chart.line(layers, line, color=INK, linestyle=(0, (1, 1.6)), linewidth=1.3, zorder=5)
    if len(dotted) == 1:
        ((rate, line),) = dotted.items()
        at = layers[depth // 2], line[depth // 2]
        how: dict[str, Any] = {
            "xytext": (10, 12),
            "textcoords": "offset points",
            "fontsize": 8,
            "color": INK,
            "path_effects": HALO,
        }
        ax.annotate(f"theory: {rate:.2f}× a layer", at, **how)
    return chart.drawn(
        name,
        about="Norm of the gradient at the pre-activations of every hidden layer at step 0, over that of the last,"
        f" for {listed([p.group.label for p in profiles])}.",
        columns=("arm", "layer", "relative_norm", "lowest", "highest", "theory"),
        rows=[
            (p.group.label, layer, *norms, None if p.theory is None else p.theory ** (len(p.mean) - 1 - layer))
            for p in profiles
            for layer, norms in enumerate(zip(p.mean, p.low, p.high, strict=True))
        ],
    )
