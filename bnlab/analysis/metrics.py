"""Every metric by its name: of the end of a run, of its course, of a curve over a factor, of an arm's seeds."""

from __future__ import annotations

from bnlab.analysis import courses, curves, ends
from bnlab.analysis.base import METRICS

__all__ = ["BUILT_IN", "METRICS", "courses", "curves", "ends", "table"]

BUILT_IN = tuple(METRICS.names())
"""Importing them has registered what they define."""


def table() -> list[dict[str, str]]:
    """Name, what it is of, meaning, source and unit of every metric, for lists."""
    metrics = [METRICS[name] for name in METRICS.names()]
    return [
        {
            "name": metric.name,
            "of": metric.of,
            "description": metric.meaning,
            "source": metric.source,
            "unit": metric.unit,
            "options": ", ".join(metric.options),
        }
        for metric in metrics
    ]
