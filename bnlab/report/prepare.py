"""What a report draws, from a collection of runs: the arms that go together, view by view. Nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnlab.analysis.arms import Arms, Key, arms_of, frozen
from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics import CONTROL
from bnlab.analysis.metrics.losses import chance_loss
from bnlab.core.spec import canonical
from bnlab.core.study import evenly
from bnlab.core.text import short_key
from bnlab.record.runs import Run
from bnlab.report.style import looks_for
from bnlab.report.views import Group, Target, View

MOST_ARMS, MOST_VIEWS = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A figure that the study asks for: the registered `kind`, its options as they were written, and what it is drawn
    from, which is nothing where no run is as `where` says."""

    kind: str
    options: Mapping[str, Any]
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """`views` for figures, `asked` for those of the study, `verdicts` on its claims; `arms` of every run by its id, and
    in their order, for tables; `left_out`: what is not drawn, in words."""

    views: tuple[View, ...]
    asked: tuple[Asked, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    arms: Mapping[str, str]
    order: tuple[str, ...]
    left_out: tuple[str, ...]


def prepare(collection: Collection, verdicts: Sequence[Verdict] = ()) -> Prepared:
    """The views of a report: one for each setting of the axes that are neither arm, learning rate nor seed; the first,
    the last and one between them where there are many."""
    runs, arms = collection.runs, arms_of(collection)
    left_out = []
    if len(arms.settings) > MOST_VIEWS:
        left_out.append(
            f"figures for {MOST_VIEWS} of {len(arms.settings)} settings of {', '.join(map(short_key, arms.rest))}; the "
            "others are in the table and in summary.parquet"
        )
    wanted = collection.study.figures if collection.study else ()
    return Prepared(
        views=_views(collection, arms),
        asked=tuple(_asked(collection, figure) for figure in wanted),
        verdicts=tuple(verdicts),
        arms={run.id: arms.label(run) for run in runs},
        order=tuple(arms.labels(runs)),
        left_out=tuple(left_out),
    )


def _asked(collection: Collection, figure: Mapping[str, Any]) -> Asked:
    """The axis that it is drawn against, `by`, tells no arms and no views apart."""
    where, by = figure.get("where") or {}, str(figure.get("by", ""))
    collection = collection.about(str(figure.get("metric")), figure.get("options") or {})
    runs = [
        run
        for run in collection.runs
        if all(key in run.spec and canonical(run.spec[key]) == canonical(value) for key, value in where.items())
    ]
    options = {key: value for key, value in figure.items() if key not in ("kind", "where")}
    narrowed = replace(collection, runs=tuple(runs))
    views = _views(narrowed, arms_of(narrowed, along=by), by) if runs else ()
    return Asked(kind=str(figure.get("kind")), options=options, views=views)


def _views(collection: Collection, arms: Arms, along: str = "") -> tuple[View, ...]:
    settings = list(arms.settings)
    views = []
    for setting in (settings[index] for index in evenly(len(settings), MOST_VIEWS)):
        here = [run for run in collection.runs if arms.setting(run) == setting]
        views.append(_view(collection, here, arms, arms.settings[setting] if len(settings) > 1 else "", along))
    return tuple(views)


def _view(collection: Collection, runs: Sequence[Run], arms: Arms, setting: str, along: str) -> View:
    by_arm: dict[Key, list[Run]] = {arm: [] for arm in arms.names}
    for run in runs:
        by_arm[arms.arm(run)].append(run)
    there = [arm for arm in by_arm if by_arm[arm]]
    shown, others = there[:MOST_ARMS], there[MOST_ARMS:]
    norms = [str(by_arm[arm][0].spec.get("norm")) for arm in shown]
    groups = tuple(
        Group(label=arms.names[arm], look=look, runs=_seen(by_arm[arm], along))
        for arm, look in zip(shown, looks_for(norms), strict=True)
    )
    return View(
        groups=groups,
        setting=setting,
        chance_loss=chance_loss(runs[0]),
        reduced=f"Not drawn: {', '.join(arms.names[arm] for arm in others)}." if others else "",
        pair=_pair(collection, arms.axis, {dict(arm).get(arms.axis): g for arm, g in zip(shown, groups, strict=True)}),
        target=_target(collection),
    )


def _pair(collection: Collection, axis: str, groups: Mapping[Any, Group]) -> tuple[Group, Group] | None:
    """The two arms that titles compare: those of the first claim on this axis, else batch norm and none, else both of
    two. `groups` are by their value of the axis."""
    claims = collection.study.claims if collection.study else ()
    wanted = [tuple(map(frozen, claim.contrast[axis])) for claim in claims if axis in claim.contrast]
    for treated, control in (*wanted, ("batch", "none")):
        if treated in groups and control in groups and treated != control:
            return groups[treated], groups[control]
    if len(groups) == 2:
        control, treated = groups
        return groups[treated], groups[control]
    return None


def _target(collection: Collection) -> Target | None:
    """The target of the first claim about steps to a training loss."""
    for claim in collection.study.claims if collection.study else ():
        options = claim.options
        if claim.metric == "steps_to" and options.get("of") == "train_loss" and options["target"] != CONTROL:
            return Target(loss=float(options["target"]), smooth=int(options["smooth"]))
    return None


def _seen(runs: Sequence[Run], along: str) -> tuple[Run, ...]:
    """One run per rate, seed and value of the axis `along`: of several that differ in their probes alone, the one with
    the longest journal."""
    best: dict[tuple[float, int, str], Run] = {}
    for run in runs:
        at = run.lr, run.seed, canonical(run.spec.get(along))
        if at not in best or run.folder.journal_bytes > best[at].folder.journal_bytes:
            best[at] = run
    return tuple(run for _, run in sorted(best.items()))
