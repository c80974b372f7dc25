"""A TensorBoard run written whole: series, images, texts, and the layout of the Custom Scalars page.

TensorBoard reads a new file in a run's folder after those it knows, and a step that does not exceed the last one
discards the points from there on. So a new file replaces the old one under a running server. It is complete before it
gets its name; then the old one is deleted.
"""

from __future__ import annotations

import hashlib
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.text import metadata as texts

from bnlab.board.events import PART, PATTERN, EventFile, new_name, scalar, summary, tensor_value

Points = Sequence[tuple[int, float]]
"""Steps and values, in the order of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A PNG and the text below it."""

    png: bytes
    description: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the head of the PNG."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a run shows, by tag. Texts are Markdown; `layout` is that of the Custom Scalars page."""

    series: Mapping[str, Points] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    layout: bytes | None = None


def write(folder: Path, content: Content) -> bool:
    """Make the run in `folder` show `content` and nothing else. Returns whether this changed anything."""
    events = _by_step(content)
    digest = hashlib.sha256(repr(events).encode()).hexdigest()[:16]
    old = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
    if old and old[-1].name.endswith(f".{digest}"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    file = EventFile(folder, name=PART)
    for step, message in events:
        file.add(step, time.time(), message)
    file.move(new_name(digest))
    file.close()
    for file_before in old:
        file_before.unlink(missing_ok=True)
    return True


def _by_step(content: Content) -> list[tuple[int, bytes]]:
    """Steps and their summaries, in the order of the steps."""
    found: dict[int, list[bytes]] = {0: []}
    if content.layout is not None:
        metadata = layouts.create_summary_metadata()
        found[0].append(_strings(layouts.CONFIG_SUMMARY_TAG, metadata, [content.layout]))
    for tag, text in content.texts.items():
        found[0].append(_strings(tag, texts.create_summary_metadata(tag, ""), [text.encode()]))
    for tag, image in content.images.items():
        metadata = images.create_summary_metadata(tag, image.description)
        size = [str(pixels).encode() for pixels in image.size]
        found[0].append(_strings(tag, metadata, [*size, image.png], is_vector=True))
    for tag, points in content.series.items():
        for step, value in points:
            found.setdefault(step, []).append(scalar(tag, value))
    return [(step, b"".join(found[step])) for step in sorted(found) if found[step]]


def _strings(tag: str, metadata: Any, strings: Sequence[bytes], *, is_vector: bool = False) -> bytes:
    """A tensor of strings: a vector, or a scalar of one string."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(strings))] if is_vector else [])
    tensor = TensorProto(dtype=DataType.DT_STRING, tensor_shape=shape, string_val=strings)
    return summary([tensor_value(tag, metadata, tensor)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A chart with one line for each tag and each run."""

    title: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A chart with a line and a band around it for each run; in a run the three tags have the same steps."""

    title: str
    value: str
    low: str
    high: str

    @property
    def tags(self) -> tuple[str, ...]:
        return self.value, self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A row of charts of one kind: the page shows all lines before all bands."""

    title: str
    charts: tuple[Lines | Band, ...]


def layout(categories: Sequence[Category]) -> bytes:
    """The serialized Layout, which shows the charts in the given order."""
    found = layout_pb2.Layout()
    for category in categories:
        lines = [chart for chart in category.charts if isinstance(chart, Lines)]
        bands = [chart for chart in category.charts if isinstance(chart, Band)]
        assert not (lines and bands), "the page would reorder them"
        added = found.category.add(title=category.title)
        for line in lines:
            content = layout_pb2.MultilineChartContent(tag=[exactly(tag) for tag in line.tags])
            added.chart.add(title=line.title, multiline=content)
        for band in reversed(bands):  # the page reverses them
            series = layout_pb2.MarginChartContent.Series(value=band.value, lower=band.low, upper=band.high)
            added.chart.add(title=band.title, margin=layout_pb2.MarginChartContent(series=[series]))
    message: bytes = found.SerializeToString()
    return message


def exactly(tag: str) -> str:
    """A regular expression that matches only this tag: the page shows every tag that begins with a match.

    >>> exactly("9_depth/log10_act_var.first")
    '^9_depth/log10_act_var\\\\.first$'
    """
    return f"^{re.escape(tag)}$"
