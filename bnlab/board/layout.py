"""What TensorBoard's Custom Scalars page shows: categories of charts, as its Layout message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tensorboard.plugins.custom_scalar import layout_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A line for each of the tags and each run."""

    title: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A line and a band around it, for each run; the three tags have the same steps in a run."""

    title: str
    value: str
    low: str
    high: str

    @property
    def tags(self) -> tuple[str, ...]:
        return self.value, self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A row of charts, of one kind: the page puts all lines before all bands, whatever the order is."""

    title: str
    charts: tuple[Lines, ...] | tuple[Band, ...]


def layout(categories: Sequence[Category]) -> bytes:
    """The serialized Layout, which gives the charts in the order in which they stand here."""
    found = layout_pb2.Layout()
    for category in categories:
        lines = [chart for chart in category.charts if isinstance(chart, Lines)]
        bands = [chart for chart in category.charts if isinstance(chart, Band)]
        assert not (lines and bands), "they would change places"
        added = found.category.add(title=category.title)
        for line in lines:
            content = layout_pb2.MultilineChartContent(tag=[exactly(tag) for tag in line.tags])
            added.chart.add(title=line.title, multiline=content)
        for band in reversed(bands):  # the page turns them round
            series = layout_pb2.MarginChartContent.Series(value=band.value, lower=band.low, upper=band.high)
            added.chart.add(title=band.title, margin=layout_pb2.MarginChartContent(series=[series]))
    message: bytes = found.SerializeToString()
    return message


def exactly(tag: str) -> str:
    """A regular expression that matches this tag alone: the page takes every tag that begins with a match.

    >>> exactly("9_depth/log10_act_var.first")
    '^9_depth/log10_act_var\\\\.first$'
    """
    return f"^{re.escape(tag)}$"
