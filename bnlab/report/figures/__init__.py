"""The figures of a report: a file registers one or two functions `draw(view, name) -> Drawn`, as a plugin does."""

from __future__ import annotations

from dataclasses import dataclass

from bnlab.core.registry import Entry, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureEntry(Entry):
    """A figure: `subject` says in a few words what it shows; `order` is its place in the report, by default after
    bnlab's own; `reads` names the measurements that it needs of many runs, which are then read in one pass."""

    subject: str
    order: int = 100
    reads: tuple[str, ...] = ()


FIGURES = Registry("figure", "bnlab.report.figures", FigureEntry, by_file=False)
"""Every figure of a report. The registered function takes a view (`bnlab.report.views.View`) and the figure's name, and
gives a `Drawn`, or raises `Missing` where the runs lack what it needs."""


def in_order() -> list[FigureEntry]:
    """Every figure, in the order of the report."""
    return sorted(FIGURES.entries(), key=lambda entry: (entry.order, entry.name))
