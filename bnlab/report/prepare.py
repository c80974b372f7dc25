"""What a report draws, from a collection of runs: the arms that go together, view by view. Nothing here draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    in their order, for tables; `left_out`: what is not drawn, in words; `mixed`: of which settings there are several
    views, in words."""

    views: tuple[View, ...]
    asked: tuple[Asked, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    arms: Mapping[str, str]
    order: tuple[str, ...]
    left_out: tuple[str, ...]
    mixed: str = ""

    def grid(self, runs: Iterable[Run]) -> dict[str, dict[float, list[Run]]]:
        """The runs by arm, in the arms' order, and by learning rate, from the smallest."""
        found: dict[str, dict[float, list[Run]]] = {arm: {} for arm in self.order}
        for run in sorted(runs, key=lambda run: run.lr):
            found[self.arms[run.id]].setdefault(run.lr, []).append(run)
        return found


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
    views = views_of(collection, arms)
    what = f"{len(arms.settings)} settings of {', '.join(map(short_key, arms.rest))}"
    mixed = (
        f"the runs have {what}, and figures are drawn for {'each' if len(views) == len(arms.settings) else len(views)}"
    )
    if len(views) == 1:  # of several, none is the one that claims are about
        views = (replace(views[0], ratios=_ratios(verdicts, arms.axis, views[0])),)
    return Prepared(
        views=views,
        asked=tuple(_asked(collection, figure) for figure in wanted),
        verdicts=tuple(verdicts),
        arms={run.id: arms.label(run) for run in runs},
        order=tuple(arms.labels(runs)),
        left_out=tuple(left_out),
        mixed=f"{mixed}; of some runs alone: bnlab plot {collection.root} --where ..."
        if len(views) > 1 and not collection.study
        else "",
    )


def _asked(collection: Collection, figure: Mapping[str, Any]) -> Asked:
    """The axes that it is drawn against, `by` and `versus`, tell no arms and no views apart."""
    where, along = figure.get("where") or {}, [str(figure[key]) for key in ("by", "versus") if key in figure]
    collection = collection.about(str(figure.get("metric")), figure.get("options") or {})
    runs = [
        run
        for run in collection.runs
        if all(key in run.spec and canonical(run.spec[key]) == canonical(value) for key, value in where.items())
    ]
    options = {key: value for key, value in figure.items() if key not in ("kind", "where")}
    narrowed = replace(collection, runs=tuple(runs))
    views = views_of(narrowed, arms_of(narrowed, along=along), along) if runs else ()
    return Asked(kind=str(figure.get("kind")), options=options, views=views)


def views_of(collection: Collection, arms: Arms, along: Sequence[str] = ()) -> tuple[View, ...]:
    """A view for each setting; the axes that a figure is drawn `along` tell no runs apart."""
    settings = list(arms.settings)
    views = []
    for setting in (settings[index] for index in evenly(len(settings), MOST_VIEWS)):
        here = [run for run in collection.runs if arms.setting(run) == setting]
        views.append(_view(collection, here, arms, arms.settings[setting] if len(settings) > 1 else "", along))
    return tuple(views)


def _view(collection: Collection, runs: Sequence[Run], arms: Arms, setting: str, along: Sequence[str]) -> View:
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
    by_value = {dict(arm).get(arms.axis): group for arm, group in zip(shown, groups, strict=True)}
    compared = _pair(collection, arms.axis, list(by_value))
    return View(
        groups=groups,
        setting=setting,
        chance_loss=chance_loss(runs[0]),
        reduced=f"Not drawn: {', '.join(arms.names[arm] for arm in others)}." if others else "",
        pair=(by_value[compared[0]], by_value[compared[1]]) if compared else None,
        compared=compared,
        target=_target(collection),
    )


def _pair(collection: Collection, axis: str, values: Sequence[Any]) -> tuple[Any, Any] | None:
    """The values of the axis of the two arms that titles compare, the treated one first: those of the first claim on
    this axis, else batch norm and none, else both of two. `values` are those of all arms."""
    claims = collection.study.claims if collection.study else ()
    wanted = [tuple(map(frozen, claim.contrast[axis])) for claim in claims if axis in claim.contrast]
    for treated, control in (*wanted, ("batch", "none")):
        if treated in values and control in values and treated != control:
            return treated, control
    return (values[1], values[0]) if len(values) == 2 else None


TITLED = {"max_stable_lr": "curve", "final_train_loss": "best_lr", "steps_to": "best_lr"}
TITLED |= {"drift_pre": "matched_lr", "loss_range": "matched_lr"}
"""Metric -> where a claim compares two arms by it as the title of a figure does."""


def _ratios(verdicts: Sequence[Verdict], axis: str, view: View) -> Mapping[str, float]:
    """By metric: what the first claim on the pair that measures what a title does says of it, the treated arm over the
    control."""
    found: dict[str, float] = {}
    goal = view.target and {"of": "train_loss", "target": view.target.loss, "smooth": view.target.smooth}
    for verdict in verdicts:
        claim = verdict.claim
        simple = claim.compare == "ratio" and set(claim.contrast) == {axis} and not claim.where and not claim.beyond
        same = claim.at == TITLED.get(claim.metric) and claim.options == (goal if claim.metric == "steps_to" else {})
        if simple and same and verdict.effect and view.compared == tuple(map(frozen, claim.contrast[axis])):
            found.setdefault(claim.metric, 1 / verdict.effect if claim.expect == "smaller" else verdict.effect)
    return found


def _target(collection: Collection) -> Target | None:
    """The target of the first claim about steps to a training loss."""
    for claim in collection.study.claims if collection.study else ():
        options = claim.options
        if claim.metric == "steps_to" and options.get("of") == "train_loss" and options["target"] != CONTROL:
            return Target(loss=float(options["target"]), smooth=int(options["smooth"]))
    return None


def _seen(runs: Sequence[Run], along: Sequence[str]) -> tuple[Run, ...]:
    """One run per rate, seed and value of the axes `along`: of several that differ in their probes alone, the one with
    the longest journal."""
    best: dict[tuple[float, int, str], Run] = {}
    for run in runs:
        at = run.lr, run.seed, canonical([run.spec.get(key) for key in along])
        if at not in best or run.folder.journal_bytes > best[at].folder.journal_bytes:
            best[at] = run
    return tuple(run for _, run in sorted(best.items()))
