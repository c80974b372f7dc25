"""From the runs below a folder to views: which arms there are, what they are called, which are drawn together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from bnlab.analysis.arms import Arms, Key, arms_of, frozen
from bnlab.analysis.load import Collection
from bnlab.core.study import evenly
from bnlab.core.text import short_key
from bnlab.record.folder import RunFolder
from bnlab.record.journal import columns, read
from bnlab.record.runs import Run
from bnlab.report.base import Floats, Group, SeenRun, Target, View
from bnlab.report.style import looks_for

KEEP = ("train_loss", "drift_mean.pre", "loss_lo", "loss_hi", "loss_range")
"""Series that figures need of many runs."""
RARE = ("delta_norm",)
"""And of a few, with all histograms."""
CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10}
MOST_ARMS, MOST_VIEWS = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """`views` for figures; `arms` of every run by its id, and in their order, for tables; `left_out`: what is not
    drawn, in words."""

    views: tuple[View, ...]
    arms: Mapping[str, str]
    order: tuple[str, ...]
    left_out: tuple[str, ...]


def prepare(collection: Collection) -> Prepared:
    """The views of a report: one for each setting of the axes that are neither arm, learning rate nor seed; the first,
    the last and one between them where there are many."""
    runs, arms = collection.runs, arms_of(collection)
    settings = list(arms.settings)
    shown = [settings[index] for index in evenly(len(settings), MOST_VIEWS)]
    left_out = []
    if len(settings) > len(shown):
        left_out.append(
            f"figures for {len(shown)} of {len(settings)} settings of {', '.join(map(short_key, arms.rest))}; the "
            "others are in the table and in summary.parquet"
        )
    views = []
    for setting in shown:
        here = [run for run in runs if arms.setting(run) == setting]
        views.append(_view(collection, here, arms, arms.settings[setting] if len(settings) > 1 else ""))
    return Prepared(
        views=tuple(views),
        arms={run.id: arms.label(run) for run in runs},
        order=tuple(arms.labels(runs)),
        left_out=tuple(left_out),
    )


def _view(collection: Collection, runs: Sequence[Run], arms: Arms, setting: str) -> View:
    by_arm: dict[Key, list[Run]] = {arm: [] for arm in arms.names}
    for run in runs:
        by_arm[arms.arm(run)].append(run)
    there = [arm for arm in by_arm if by_arm[arm]]
    shown, others = there[:MOST_ARMS], there[MOST_ARMS:]
    norms = [str(by_arm[arm][0].spec.get("norm")) for arm in shown]
    groups = tuple(
        Group(label=arms.names[arm], look=look, runs=_seen(collection, by_arm[arm]))
        for arm, look in zip(shown, looks_for(norms), strict=True)
    )
    return View(
        groups=groups,
        setting=setting,
        chance_loss=_chance(runs[0].spec),
        reduced=f"Not drawn: {', '.join(arms.names[arm] for arm in others)}." if others else "",
        pair_labels=_pair(collection, arms.axis, {dict(arm).get(arms.axis): arms.names[arm] for arm in shown}),
        target=_target(collection),
    )


def _pair(collection: Collection, axis: str, labels: Mapping[Any, str]) -> tuple[str, str] | None:
    """The two arms that titles compare: those of the first claim on this axis, else batch norm and none, else both of
    two."""
    claims = collection.study.claims if collection.study else ()
    wanted = [tuple(map(frozen, claim.contrast[axis])) for claim in claims if axis in claim.contrast]
    for treated, control in (*wanted, ("batch", "none")):
        if treated in labels and control in labels and labels[treated] != labels[control]:
            return labels[treated], labels[control]
    if len(labels) == 2:
        control, treated = labels.values()
        return treated, control
    return None


def _target(collection: Collection) -> Target | None:
    """That of the first claim about steps to a training loss."""
    for claim in collection.study.claims if collection.study else ():
        options = claim.options
        if claim.metric == "steps_to" and options.get("of") == "train_loss":
            return Target(loss=float(options["target"]), smooth=int(options["smooth"]))
    return None


def _seen(collection: Collection, runs: Sequence[Run]) -> tuple[SeenRun, ...]:
    """One run a rate and seed: of several that differ in their probes alone, the one with the most in its journal."""
    best: dict[tuple[float, int], Run] = {}
    for run in runs:
        at = float(run.spec["optim.lr"]), int(run.spec["seed"])
        if at not in best or _size(run) > _size(best[at]):
            best[at] = run
    return tuple(_run(collection, run) for _, run in sorted(best.items()))


def _size(run: Run) -> int:
    try:
        return RunFolder(run.path).journal_file.stat().st_size
    except OSError:
        return 0


def _run(collection: Collection, run: Run) -> SeenRun:
    rare: dict[str, tuple[Floats, Floats]] = {}

    def names(prefix: str) -> list[str]:
        journal = RunFolder(run.path).journal_file
        first: Mapping[str, Any] = next(islice(read(journal), 1), {}) if journal.is_file() else {}
        return [name for name in first if name.startswith(prefix)]

    def series(name: str) -> tuple[Floats, Floats]:
        if name in collection.keep:
            found = run.series(name)
            return found.steps.astype(np.float64), found.values
        if not rare:
            read_now = columns(RunFolder(run.path).journal_file, {*RARE, *names("histogram.pre.")})
            rare.update({key: (found.steps.astype(np.float64), found.values) for key, found in read_now.items()})
            rare.setdefault("", (np.empty(0), np.empty(0)))
        return rare.get(name, rare[""])

    return SeenRun(
        path=collection.place(run),
        lr=float(run.spec["optim.lr"]),
        seed=int(run.spec["seed"]),
        diverged=run.diverged,
        dead=run.finished and not run.trains,
        step=int(run.status.get("step", run.steps)),
        metrics={
            name: math.nan if value is None else float(value)
            for name, value in (run.status.get("metrics") or {}).items()
        },
        spec=run.spec,
        series=series,
        names=names,
    )


def _chance(spec: Mapping[str, Any]) -> float | None:
    """The loss of equal odds for every class."""
    classes = spec.get("data.classes", CLASSES.get(str(spec.get("data"))))
    if spec.get("loss") != "cross_entropy" or not isinstance(classes, int) or classes < 2:
        return None
    return math.log(classes) if spec.get("reduction") == "mean" else None
