"""A reading of one run: what stands out in it, by rules with thresholds. No torch here.

A rule reads a run's journal, status and spec; one whose measurement is absent stays silent. Rules are in the order of
their weight. Where nothing else is said, values are medians over the second half of a run: at its start every net
moves fast.

Legend: T measured steps, L sites; the last site is the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnlab.core.text import count, number
from bnlab.core.theory import gradient_growth
from bnlab.record.journal import Floats
from bnlab.record.runs import DIVERGED_ABOVE, Run

MOST = 5
"""Findings that are shown of one run."""
NOTHING = "nothing"
"""The name of the last sentence, which says what does not stand out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A sentence about a run, the figures that fired its rule, and the rule's name, threshold and source."""

    name: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a rule sees in a run: whether it stands out, and the sentence if so; `calm`, in words, if not."""

    stands_out: bool
    text: str
    figures: Mapping[str, Any]
    calm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`what` it compares with the threshold, and since when that stands out; `read(run, threshold)` gives None where
    the measurements in `reads` are absent. `probes` measure them, in the words of `probes=`."""

    name: str
    what: str
    threshold: float
    source: str
    read: Callable[[Run, float], Reading | None]
    reads: tuple[str, ...] = ("train_loss",)
    probes: str = "any"


def findings(run: Run) -> tuple[Finding, ...]:
    """What stands out in a run, by weight, at most `MOST`; then, if there is room, a sentence on what does not. Empty
    for a run that has not ended."""
    if not run.ended:
        return ()
    run = replace(run, keep=READS)  # one pass over the journal
    found, calm = [], []
    for rule in RULES:
        with np.errstate(all="ignore"):
            reading = rule.read(run, rule.threshold)
        if reading is not None and reading.stands_out:
            known: dict[str, Any] = {"name": rule.name, "threshold": rule.threshold, "source": rule.source}
            figures = {key: _finite(value) for key, value in reading.figures.items()}
            found.append(Finding(text=reading.text, figures=figures, **known))
        elif reading is not None and reading.calm:
            calm.append(reading.calm)
    begin = "Nothing else stands out" if found else "Nothing stands out"
    if calm or not found:
        found.append(Finding(name=NOTHING, text=": ".join(filter(None, [begin, ", ".join(calm)])) + "."))
    return tuple(found[:MOST])


# -- the rules -------------------------------------------------------------------------------------


def _diverged(run: Run, threshold: float) -> Reading | None:
    losses = run.series("train_loss").values
    first = float(losses[0]) if len(losses) else math.nan
    where = run.status.get("diverged") or {}
    loss, site = where.get("loss"), where.get("site")
    size = "not finite" if loss is None else f"{number(loss)}, more than {number(threshold)} times the first"
    text = f"The loss diverges at step {run.step}: it is {size}"
    return Reading(
        stands_out=run.diverged,
        text=text + (f"; the first activation that is not finite is in {site}." if site else "."),
        figures={"step": run.step, "loss": loss, "first_loss": first, "site": site},
        calm="",
    )


def _chance(run: Run, threshold: float) -> Reading | None:
    known = {name: _finite(run.final(name)) for name in ("train_accuracy", "train_loss")}
    shown = [f"{name.replace('_', ' ')} {number(value)}" for name, value in known.items() if value is not None]
    text = f"The net is no better than the best constant answer: {', '.join(shown)}."
    return Reading(stands_out=run.dead, text=text, figures=known, calm="")


BEFORE = 5
"""Measured losses whose median a spike is held against; the first ones have no spikes."""


def _spikes(run: Run, threshold: float) -> Reading | None:
    steps, losses = run.series("train_loss")
    if run.diverged:  # its last loss has a finding of its own
        steps, losses = steps[:-1], losses[:-1]
    if len(losses) <= BEFORE or not losses[0]:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses[:-1], BEFORE), axis=1)  # [T - BEFORE]
    rises = (losses[BEFORE:] - medians) / losses[0]
    above = rises > threshold
    spikes = int(np.sum(above[1:] & ~above[:-1])) + int(above[0])
    top = int(np.nanargmax(rises)) if np.isfinite(rises).any() else 0
    step, loss, before = int(steps[BEFORE + top]), float(losses[BEFORE + top]), float(medians[top])
    more = f" {count(spikes, 'such rise')} in the run." if spikes > 1 else ""
    text = (
        f"The training loss spikes: {number(loss)} at step {step}, after a median of {number(before)}; that is a rise "
        f"by {number(float(rises[top]))} of the first loss.{more}"
    )
    figures = {"step": step, "loss": loss, "median_before": before, "rise": float(rises[top]), "spikes": spikes}
    return Reading(stands_out=bool(above.any()), text=text, figures=figures, calm="no spikes of the loss")


def _running_statistics(run: Run, threshold: float) -> Reading | None:
    mean_gap, var_gap = (_last(run.series(name).values) for name in ("bn_mean_gap", "bn_var_gap"))
    if mean_gap is None:
        return None
    gaps = mean_gap if var_gap is None else np.fmax(mean_gap, var_gap)  # [L]
    worst = int(np.nanargmax(gaps))
    mean, var = float(mean_gap[worst]), math.nan if var_gap is None else float(var_gap[worst])
    factor = f", and the variance wrong by a factor of {number(float(np.exp(var)))}" if math.isfinite(var) else ""
    text = (
        f"Running statistics are far from the training set's: in {_site(run, worst)} the mean is off by {number(mean)} "
        f"sd{factor}; evaluation uses them."
    )
    figures = {"site": _site(run, worst), "bn_mean_gap": mean, "bn_var_gap": var}
    calm = f"running statistics within {number(float(gaps[worst]))} of the training set's"
    return Reading(stands_out=bool(gaps[worst] > threshold), text=text, figures=figures, calm=calm)


def _share_of(name: str, what: str, words: str, calm: str) -> Callable[[Run, float], Reading | None]:
    """A rule on the worst site's share of `name` at the last measurement."""

    def read(run: Run, threshold: float) -> Reading | None:
        values = run.series(name).values
        last = _last(values)
        if last is None:
            return None
        worst, many = int(np.nanargmax(last)), int(np.sum(last > threshold))
        share, before = float(last[worst]), float(values[0, worst])
        text = (
            f"{_site(run, worst)} {what}: {number(share)} of its {words}, {number(before)} at the start; "
            f"{many} of {count(int(np.isfinite(last).sum()), 'layer')} above {number(threshold)}."
        )
        figures = {"site": _site(run, worst), name: share, "at_start": before, "layers": many}
        return Reading(
            stands_out=share > threshold,
            text=text,
            figures=figures,
            calm=f"at most {number(share)} of a layer's {calm}",
        )

    return read


GROWN = 10.0
"""Over all layers, the least change of the gradient that stands out: in few layers a factor per layer says little."""


def _gradient(run: Run, threshold: float) -> Reading | None:
    norms = _late(run, "delta_norm")
    layers = norms.shape[1] - 2 if norms.ndim == 2 else 0  # steps from the last hidden site to the first
    ratios = norms[:, 0] / norms[:, -2] if layers >= 2 else np.zeros(0)
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(ratios):
        return None
    total = float(np.exp(np.median(np.log(ratios))))
    growth = total ** (1 / layers)
    grows, by, law = growth >= 1, max(growth, 1 / growth), _law(run)
    beside = f"; a wide random net with batch norm has {number(law)} (Yang et al. 2019)" if law else ""
    text = (
        f"The gradient {'grows' if grows else 'shrinks'} towards the input by {number(by)} per layer, "
        f"{number(max(total, 1 / total))} times from {_site(run, layers)} to {_site(run, 0)}{beside}."
    )
    figures = {"growth_per_layer": growth, "total_growth": total, "layers": layers, "batch_norm_theory": law}
    calm = f"gradient {'growing' if grows else 'shrinking'} by {number(by)} per layer"
    return Reading(stands_out=by > threshold and max(total, 1 / total) > GROWN, text=text, figures=figures, calm=calm)


def _law(run: Run) -> float | None:
    """What Yang et al. 2019 have for the growth of the gradient per layer; None where they have nothing."""
    batch = run.spec.get("data.batch_size")
    if run.spec.get("norm") != "batch" or not isinstance(batch, int):
        return None
    try:
        return math.sqrt(gradient_growth(batch, str(run.spec.get("model.activation"))))
    except ValueError:
        return None


AIM = 1e-3
"""The ratio of update to weights that Karpathy aims at."""


def _update_ratio(run: Run, threshold: float) -> Reading | None:
    ratios, losses = _late(run, "update_ratio"), _late(run, "train_loss")
    if not len(ratios) or not len(losses):
        return None
    ratio = _median(_medians(ratios))
    left = float(np.divide(_median(losses), run.series("train_loss").values[0]))  # NaN where both are 0
    large, small = ratio > threshold * AIM, ratio < AIM / threshold and left > 0.5
    rest = "" if large else f", and the loss is at {number(left)} of its first value"
    text = (
        f"Updates are {'large' if large else 'small'}: a step moves weights by {number(ratio)} of their norm, "
        f"where {number(AIM)} is usual{rest}."
    )
    figures = {"update_ratio": ratio, "loss_over_first": left}
    return Reading(
        stands_out=large or small, text=text, figures=figures, calm=f"updates of {number(ratio)} of the weights"
    )


def _edge(run: Run, threshold: float) -> Reading | None:
    edges, momentum = _late(run, "eta_lambda_half"), float(run.spec.get("optim.momentum") or 0.0)
    # The bound is that of gradient descent: of the loss whose Hessian it is, with no preconditioner.
    if not len(edges) or run.spec.get("optim") != "sgd" or run.spec.get("data.batch_size") != "full":
        return None
    bound = (1 + momentum) / (1 + 2 * momentum * bool(run.spec.get("optim.nesterov")))
    value = _median(edges)
    text = (
        f"The learning rate is at the edge of stability: eta lambda / 2 is {number(value)}, and "
        f"steps on a quadratic are stable up to {number(bound)}."
    )
    figures, calm = {"eta_lambda_half": value, "bound": bound, "lr": run.lr}, f"eta lambda / 2 {number(value)}"
    return Reading(stands_out=value > threshold * bound, text=text, figures=figures, calm=calm)


FEWEST = 10
"""Measurements of drift: with fewer in the second half of a run, one spans more than a twentieth of it."""


def _drift(run: Run, threshold: float) -> Reading | None:
    drifts, floors = _late(run, "drift_mean.pre"), _late(run, "sampling_floor.pre")
    if len(drifts) < FEWEST or not len(floors) or drifts.shape[1] < 2:
        return None
    drift, floor = _medians(drifts)[:-1], _medians(floors)[:-1]  # [L - 1]: the head's outputs move as the net learns
    times = drift / floor
    if not np.isfinite(times).any():
        return None
    worst = int(np.nanargmax(np.where(np.isfinite(times), times, np.nan)))
    value, steps = float(times[worst]), run.spaced("drift_mean.pre").steps
    every = int(steps[-1] - steps[-2])
    text = (
        f"{_site(run, worst)} still drifts: in {count(every, 'step')} its means move "
        f"by {number(float(drift[worst]))} sd, {number(value)} times what sampling alone gives."
    )
    figures = {"site": _site(run, worst), "drift": float(drift[worst]), "sampling_floor": float(floor[worst])}
    calm = f"drift {number(value)} of its sampling floor"
    return Reading(stands_out=value > threshold, text=text, figures=figures | {"every": every}, calm=calm)


def _median(values: Floats) -> float:
    """Of those that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _medians(values: Floats) -> Floats:
    """Of each column: [T, L] -> [L]."""
    return np.array([_median(column) for column in values.T])


def _late(run: Run, name: str) -> Floats:
    """The values at the equally spaced steps of the second half of the run: [T] or [T, L]."""
    values = run.spaced(name).values
    return values[len(values) // 2 :]


def _last(values: Floats) -> Floats | None:
    """The last row [L] that has a number; None if there is none."""
    rows = values[np.isfinite(values).any(axis=1)] if values.ndim == 2 else values
    return rows[-1] if len(rows) else None


def _site(run: Run, index: int) -> str:
    names: Sequence[str] = run.provenance.get("sites") or ()
    return names[index] if index < len(names) else f"L{index:02d}"


def _finite(value: Any) -> Any:
    """`value`; None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


RULES = (
    Rule(
        name="diverged",
        what="training loss over the first one, or not finite: training stops",
        threshold=DIVERGED_ABOVE,
        source="Bjorck et al. 2018",
        read=_diverged,
    ),
    Rule(
        name="chance",
        what="training accuracy over that of the best constant answer, or in a regression the latter's loss over the "
        "net's: this or less",
        threshold=1.05,
        source="bnlab",
        read=_chance,
    ),
    Rule(
        name="running_statistics",
        what="|running mean - training set's| in sd, or |log of the variances' ratio|, at the end, of the worst layer",
        threshold=0.1,
        source="Wu & Johnson 2021; threshold measured",
        read=_running_statistics,
        reads=("bn_mean_gap", "bn_var_gap"),
        probes="bn_statistics",
    ),
    Rule(
        name="spikes",
        what=f"rise of a measured training loss above the median of the {BEFORE} before, over the first loss",
        threshold=0.3,
        source="bnlab; threshold measured",
        read=_spikes,
    ),
    Rule(
        name="dead",
        what="share of a layer's ReLU channels that are 0 on the whole probe batch, at the end",
        threshold=0.4,
        source="Karpathy, CS231n notes: as much as 40 % at too large rates",
        read=_share_of("dead_fraction", "has dead units", "ReLU channels are 0 on the whole probe batch", "units dead"),
        reads=("dead_fraction",),
        probes="activations",
    ),
    Rule(
        name="saturated",
        what="share of a layer's outputs with |tanh| > 0.97, or with a sigmoid outside 0.03 to 0.97, at the end",
        threshold=0.5,
        source="Karpathy 2022, makemore part 3; threshold measured",
        read=_share_of("saturated_fraction", "is saturated", "outputs are in the flat ends", "outputs saturated"),
        reads=("saturated_fraction",),
        probes="saturation",
    ),
    Rule(
        name="gradient",
        what="factor per layer, either way, of ||dL/dpre|| from the last hidden site to the first, "
        f"where it changes more than {GROWN:g} times in all",
        threshold=1.2,
        source="Yang et al. 2019, theorem 8, beside it",
        read=_gradient,
        reads=("delta_norm",),
        probes="gradients",
    ),
    Rule(
        name="update_ratio",
        what="||update|| / ||weights|| over 1e-3, or 1e-3 over it while the loss is above half of the first; median "
        "over the layers",
        threshold=30.0,
        source="Karpathy, CS231n notes: around 1e-3; threshold measured",
        read=_update_ratio,
        reads=("update_ratio", "train_loss"),
        probes="gradients",
    ),
    Rule(
        name="edge",
        what="eta lambda / 2 over its bound, which is 1 + momentum; full-batch SGD alone",
        threshold=0.95,
        source="Cohen et al. 2021",
        read=_edge,
        reads=("eta_lambda_half",),
        probes="sharpness",
    ),
    Rule(
        name="drift",
        what=f"drift of a hidden layer's means at pre over its sampling floor, from {FEWEST} measurements on",
        threshold=1.0,
        source="bnlab; the floor is what sampling alone gives",
        read=_drift,
        reads=("drift_mean.pre", "sampling_floor.pre"),
        probes="activations",
    ),
)
"""The heaviest first."""

READS = frozenset(name for rule in RULES for name in rule.reads)
