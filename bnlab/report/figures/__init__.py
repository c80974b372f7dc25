"""The figures of a report: a file registers one or two functions `draw(view, name) -> Drawn`, as a plugin does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bnlab.analysis.claims import asked_of, reference, refuse_absent, specs_of
from bnlab.analysis.metrics import METRICS, measurements, refuse_control, refuse_unknown
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import Entry, Registry, load_plugins
from bnlab.core.study import Cell, Study
from bnlab.core.typed import option_defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureEntry(Entry):
    """A figure: `subject` says in a few words what it shows; `order` is its place in the report, by default after
    bnlab's own; `reads` names the measurements that it needs of many runs, which are then read in one pass.

    `of` says what it is drawn from: `view`, once of every view; `study`, of a view where a study's `figures` ask for
    it, with the keyword-only parameters as its options; `verdicts`, of the verdicts on all claims.
    """

    subject: str
    of: Literal["view", "study", "verdicts"] = "view"
    order: int = 100
    reads: tuple[str, ...] = ()


FIGURES = Registry("figure", "bnlab.report.figures", FigureEntry, by_file=False)
"""Every figure of a report. The registered function takes a view (`bnlab.report.views.View`), or the verdicts, and the
figure's name, and gives a `Drawn`, or raises `Missing` where the runs lack what it needs."""


def in_order(of: Literal["view", "study", "verdicts"] = "view") -> list[FigureEntry]:
    """The figures that are drawn from a view, or from something else, in the order of the report."""
    return sorted((entry for entry in FIGURES.entries() if entry.of == of), key=lambda entry: (entry.order, entry.name))


def options_of(kind: str, options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The options of a figure that a study asks for, those that are not given with the values of its function.

    Raises:
        UsageError: no such kind or option, one that is missing, one of the wrong type.
    """
    kinds = [entry.name for entry in in_order("study")]
    if kind not in kinds:
        raise UsageError(f"{place}.kind", "no such kind of figure", kind, nearest(kind, kinds))
    return FIGURES.checked(kind, option_defaults(FIGURES[kind].constructor) | dict(options), place)


def check_figures(study: Study, cells: Sequence[Cell], typed: Collection[str] = ()) -> None:
    """Refuse figures of a study that could never be drawn, before anything runs. Values of keys that were `typed`
    behind the study are not checked.

    Raises:
        UsageError: `figures.0.KEY`, and what is wrong with it.
    """
    once = specs_of(cells)
    if study.figures:
        load_plugins(dict.fromkeys(file for cell in cells for file in cell.spec.plugins))
    for index, figure in enumerate(study.figures):
        place = f"figures.{index}"
        given = {key: value for key, value in figure.items() if key not in ("kind", "where")}
        if "kind" not in figure:
            raise UsageError(f"{place}.kind", "missing", remedy="Write kind: by, map, steps, profile or layers.")
        options = options_of(str(figure["kind"]), given, place)
        metric, more = str(options.get("metric")), options.get("options") or {}
        specs = asked_of(study, once, f"{place}.metric", metric, more)
        where = figure.get("where") or {}
        if not isinstance(where, Mapping):
            raise UsageError(f"{place}.where", "must have keys and values", where)
        wanted = [("where", key, [value]) for key, value in where.items()]
        wanted += [(key, options[key], []) for key in ("by", "versus") if key in options]
        for part, key, values in wanted:
            refuse_absent(f"{place}.{part}", key, values if key not in typed else (), specs)
        if options.get("lr") is not None and "optim.lr" not in typed:
            refuse_absent(place, "lr", [options["lr"]], [{"lr": spec["optim.lr"]} for spec in specs])
        if isinstance(options.get("reference"), str):
            reference(options["reference"], f"{place}.reference")
        if "of" in options:
            refuse_unknown(f"{place}.of", "measurement", options["of"], measurements())
        if "metric" in options:
            refuse_unknown(f"{place}.metric", "metric", options["metric"], METRICS.names())
            METRICS.checked(options["metric"], options.get("options") or {}, f"{place}.options")
            refuse_control(options.get("options") or {}, f"{place}.options")
            if (of := METRICS[options["metric"]].of) != "run":
                raise UsageError(
                    f"{place}.metric", f"must be a metric of a run; this is one of a {of}", options["metric"]
                )
