"""Norm of the gradient at the pre-activations against depth, before the first step, with Yang et al.'s rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.core.text import count, listed
from bnlab.core.theory import gradient_growth
from bnlab.record.runs import Run
from bnlab.report.figures import FIGURES
from bnlab.report.sheet import (
    HALO,
    LEFT,
    EndLabel,
    Sheet,
    around,
    footnote,
    log_ticks,
    open_marker,
    place_labels,
    room_for,
)
from bnlab.report.style import INK, Look
from bnlab.report.views import Drawn, Floats, Group, Missing, Number, View, finite, geometric

METRIC = "delta_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One arm: norms [L] relative to the last hidden layer's, geometric mean and range over `seeds` nets; `rate`:
    growth a layer towards the input; `theory`: what it is in a wide net, where there is a closed form."""

    label: str
    look: Look
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


def profile(group: Group) -> Profile | None:
    """Of one net a seed: at step 0 the learning rate does not matter."""
    first = {run.seed: run for run in sorted(group.runs, key=lambda run: -run.lr)}
    norms = {seed: norm for seed, run in sorted(first.items()) if (norm := start(run)) is not None}
    if not norms:
        return None
    stack = np.stack(list(norms.values()))
    mean = geometric(stack)
    return Profile(
        label=group.label,
        look=group.look,
        mean=mean,
        low=stack.min(axis=0),
        high=stack.max(axis=0),
        seeds=len(norms),
        rate=float(mean[0]) ** (1 / (len(mean) - 1)),
        theory=closed_form(group.runs[0]),
    )


def headline(view: View, profiles: list[Profile]) -> str:
    """The growth a layer, of the arm where it is strongest and of the one where it is weakest, of the pair if there is
    one."""

    def grows(p: Profile) -> str:
        if abs(math.log(p.rate)) < math.log(1.02):
            return "stay level"
        return f"grow {p.rate:.2f}×" if p.rate > 1 else f"shrink {1 / p.rate:.2f}×"

    if view.pair is not None:
        named = [p for p in profiles if p.label in (view.pair[0].label, view.pair[1].label)]
        profiles = named if len(named) == 2 else profiles
    first = max(profiles, key=lambda p: abs(math.log(p.rate)))
    last = min(profiles, key=lambda p: abs(math.log(p.rate)))
    words = f"{grows(first)} a layer" if "×" in grows(first) else grows(first)
    if first is last:
        return f"Towards the input, gradients {words} at step 0 ({first.label})"
    return f"Towards the input, gradients {words} with {first.label}; they {grows(last)} with {last.label}"


@FIGURES.register(
    "gradient_depth",
    order=6,
    subject="gradient norm against depth at step 0",
)
def draw(view: View, name: str) -> Drawn:
    """Draw it.

    Raises:
        Missing: the norms were not measured, or there are fewer than two hidden layers.
    """
    profiles = [found for group in view.groups if (found := profile(group)) is not None]
    if not profiles:
        raise Missing("no gradient norms of two or more hidden layers at step 0", "measure them: probes=economy")
    title = view.titled(headline(view, profiles))
    theories = {p.theory: p.label for p in profiles if p.theory is not None}
    theory = (
        f"Dotted: {listed([f'{rate:.3f} a layer ({label})' for rate, label in theories.items()])}, Yang et al. 2019, "
        "theorem 8, wide nets with these batches."
        if theories
        else ""
    )
    nets = count(profiles[0].seeds, "net")
    note = footnote(
        f"‖∂L/∂pre‖ of each hidden layer at step 0, over that of the last; line: geometric mean of {nets}, band: "
        "smallest to largest.",
        theory,
        view.reduced,
    )
    sheet = Sheet(title, note, plot_height=3.15)
    ax = sheet.axes(left=LEFT, right=room_for([group.label for group in view.groups]))
    depth = max(len(p.mean) for p in profiles)
    lines = [x for p in profiles for x in (p.low, p.high)]
    lines += [rate ** np.arange(depth - 1, -1, -1.0) for rate in theories]
    log_ticks(ax, *around(finite(np.concatenate(lines))))
    ax.set_xlim(1 - 0.03 * depth, depth + 0.03 * depth)
    ax.set_xticks(sorted({1, depth, *range(5, depth - 1, 5)}) if depth > 10 else list(range(1, depth + 1)))
    ax.set_xlabel("hidden layer (1 = input)")
    ax.set_ylabel(f"gradient norm, relative to layer {depth}")
    drawn, labels = [], []
    rows: list[tuple[Number, ...]] = []
    for p in profiles:
        x = np.arange(1, len(p.mean) + 1.0)
        ax.fill_between(x, p.low, p.high, color=p.look.color, alpha=0.18, linewidth=0)
        ax.plot(x, p.mean, color=p.look.color, linestyle=p.look.dash, zorder=3)
        ax.plot(x, p.mean, zorder=4, **open_marker(p.look))
        drawn.append((x, p.mean))
        labels.append(EndLabel(text=p.label, look=p.look, x=float(x[0]), y=float(p.mean[0])))
        theory_line = p.theory ** (len(x) - x) if p.theory is not None else [None] * len(x)
        rows += [
            (p.label, int(n), float(m), float(lo), float(hi), None if t is None else float(t))
            for n, m, lo, hi, t in zip(x, p.mean, p.low, p.high, theory_line, strict=True)
        ]
    x = np.arange(1, depth + 1.0)
    for rate in theories:
        y = rate ** (depth - x)
        ax.plot(x, y, color=INK, linestyle=(0, (1, 1.6)), linewidth=1.3, zorder=5)
        drawn.append((x, y))
    if len(theories) == 1:
        ax.annotate(
            f"theory: {next(iter(theories)):.2f}× a layer",
            (float(x[depth // 2]), float(y[depth // 2])),
            xytext=(10, 12),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            path_effects=HALO,
        )
    place_labels(ax, [_middle(label, p) for label, p in zip(labels, profiles, strict=True)], drawn)
    return sheet.drawn(
        name,
        about="Norm of the gradient at the pre-activations of every hidden layer at step 0, over that of the last,"
        " for " + listed([p.label for p in profiles]) + ".",
        columns=("arm", "layer", "relative_norm", "lowest", "highest", "theory"),
        rows=rows,
    )


def _middle(label: EndLabel, p: Profile) -> EndLabel:
    """All lines meet at 1 at the last layer, so names are placed at the second layer."""
    at = min(1, len(p.mean) - 1)
    return EndLabel(text=label.text, look=label.look, x=float(at + 1), y=float(p.mean[at]))
