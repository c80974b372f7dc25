"""A TensorBoard run from what is known already: series, images, texts, a layout. Written whole, and anew when it
changes.

TensorBoard's loader reads a file that is new in a run's folder after those it knows, and a step that is not above the
last one purges what it had from there on: the new file takes the place of the old one while somebody looks. It is
complete before it gets its name, and then the old one goes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.text import metadata as texts

from bnlab.board.events import PATTERN, EventFile

Points = Sequence[tuple[int, float]]
"""Step and value, steps going up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG, and what is said below it."""

    png: bytes
    description: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, which stand at the head of a PNG."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a run shows, by tag; texts are Markdown, `layout` is that of the Custom Scalars page."""

    series: Mapping[str, Points] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    layout: bytes | None = None


def write(folder: Path, content: Content) -> bool:
    """Make the run in `folder` show `content`, and nothing else. Returns whether anything had to be done for that."""
    events = [(step, Summary(value=values).SerializeToString()) for step, values in _by_step(content).items()]
    digest = hashlib.sha256(repr(events).encode()).hexdigest()[:16]
    old = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
    if old and old[-1].name.endswith(f".{digest}"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bnlab-") as aside:  # what has `tfevents` in its name is read at once
        file = EventFile(Path(aside))
        for step, summary in events:
            file.add(step, time.time(), summary)
        file.close()
        (ready,) = Path(aside).iterdir()
        part = folder / f".part.{os.getpid()}"
        shutil.copyfile(ready, part)
    seconds, rest = divmod(time.time_ns(), 10**9)  # files are read in the order of their names
    os.replace(part, folder / f"events.out.tfevents.{seconds:010d}.{rest:09d}.{digest}")
    for file_before in old:
        file_before.unlink(missing_ok=True)
    return True


def _by_step(content: Content) -> dict[int, list[Any]]:
    """Step -> values, steps going up, so that no value of a tag comes before an earlier one."""
    found: dict[int, list[Any]] = {}
    first = found.setdefault(0, [])
    if content.layout is not None:
        first.append(_tensor(layouts.CONFIG_SUMMARY_TAG, layouts.create_summary_metadata(), [content.layout]))
    for tag, text in content.texts.items():
        first.append(_tensor(tag, texts.create_summary_metadata(tag, ""), [text.encode()]))
    for tag, picture in content.pictures.items():
        about = images.create_summary_metadata(tag, picture.description)
        width, height = (str(pixels).encode() for pixels in picture.size)
        first.append(_tensor(tag, about, [width, height, picture.png], vector=True))
    for tag, points in content.series.items():
        for step, value in points:
            found.setdefault(step, []).append(Summary.Value(tag=tag, simple_value=value))
    return {step: found[step] for step in sorted(found) if found[step]}


def _tensor(tag: str, about: Any, strings: Sequence[bytes], *, vector: bool = False) -> Any:
    """Strings as plugins want them: one alone is a scalar."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(strings))] if vector else [])
    tensor = TensorProto(dtype=DataType.DT_STRING, tensor_shape=shape, string_val=strings)
    return Summary.Value(tag=tag, metadata=about, tensor=tensor)
