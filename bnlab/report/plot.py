"""Any metric against any axis, drawn from run folders without a study that asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bnlab.analysis.arms import arms_of
from bnlab.analysis.claims import refuse_absent
from bnlab.analysis.load import Collection, read_runs
from bnlab.analysis.metrics import METRICS, refuse_control, refuse_unknown
from bnlab.analysis.select import Selection
from bnlab.core.errors import UsageError
from bnlab.core.spec import GROUPS
from bnlab.core.text import listed
from bnlab.core.typed import option_defaults, option_names
from bnlab.record.runs import Run
from bnlab.report.build import named
from bnlab.report.figures import FIGURES, options_of
from bnlab.report.prepare import views_of
from bnlab.report.style import Format
from bnlab.report.views import Missing
from bnlab.report.write import Written, styled, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """The metric `y` of runs against the key `x` of their specs, or as a map over `x` and `versus`. `by`: the key that
    tells lines or maps apart; None: as in a report. `where` are conditions as `bnlab runs` takes them; `options` go to
    the metric, `more` to the figure."""

    y: str
    x: str = "optim.lr"
    versus: str | None = None
    by: str | None = None
    where: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def plot(root: Path, asked: Plot, plugins: Sequence[str] = (), shape: Format | None = None) -> list[Written]:
    """A picture for each setting of the axes that tell neither lines nor places apart, at most three.

    Raises:
        UsageError: no runs, no such metric, option or key, no run as `where` says, or nothing to draw.
    """
    of = asked.options.get("of")
    collection = read_runs(root, keep=[of] if isinstance(of, str) else [], plugins=plugins)
    refuse_unknown("--y", "metric", asked.y, METRICS.names())
    if (kind := METRICS[asked.y].of) != "run":
        raise UsageError("--y", f"must be a metric of a run; this is one of a {kind}", asked.y)
    metric = METRICS.entry(asked.y).constructor
    lacking = [name for name in option_names(metric) if name not in {*option_defaults(metric), *asked.options}]
    if lacking:
        raise UsageError("--option", f"{asked.y} needs {listed(lacking)}", remedy=f"Write --option {lacking[0]}=...")
    METRICS.checked(asked.y, asked.options, "--option")
    refuse_control(asked.options, "--option")
    collection = collection.about(asked.y, asked.options)
    narrowed = replace(collection, runs=tuple(_selected(collection, asked.where)))
    if not narrowed.runs:
        raise UsageError("--where", "no run that has ended is so", " ".join(asked.where) or str(root))
    specs = [run.spec for run in narrowed.runs]
    for option, key in (("--x", asked.x), ("--map", asked.versus), ("--by", asked.by)):
        if key is not None:
            refuse_absent(option, key, (), specs)
    along = tuple(key for key in (asked.x, asked.versus) if key)
    figure = "map" if asked.versus else "by"
    options = {"metric": asked.y, "by": asked.x, "options": dict(asked.options), **asked.more}
    checked = options_of(figure, options | ({"versus": asked.versus} if asked.versus else {}), "plot")
    name = "-".join([asked.y, *(key.rpartition(".")[2] for key in along)])
    views = views_of(narrowed, arms_of(narrowed, along=along, by=asked.by), along)
    found, why = [], Missing("nothing was measured")
    with styled(shape):
        for number, view in enumerate(views):
            try:
                found.append(written(FIGURES[figure].constructor(view, named(name, view, number), **checked)))
            except Missing as error:
                why = error
    if not found:
        raise UsageError("plot", str(why), asked.y, f"To get it, {why.remedy}." if why.remedy else "")
    return found


def _selected(collection: Collection, where: Sequence[str]) -> list[Run]:
    """The runs as `where` says; a group's choice has the key `norm.name` there."""
    known = [{**run.spec, **{f"{group}.name": run.spec.get(group) for group in GROUPS}} for run in collection.runs]
    return [collection.runs[index] for index in Selection(where=where).of(known)]
