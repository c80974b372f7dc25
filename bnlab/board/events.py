"""Event files, as TensorBoard reads them: events in the framing of a TFRecord; and the messages in them.

TensorBoard's own writer starts a thread and a queue for each file. bnlab writes the framing itself, for two reasons: a
run writes records in batches from its loop and must know when they are on the disk, and a file that replaces another
must be complete before it gets the name under which TensorBoard finds it (`publish`).

TensorBoard reads a new file in a run's folder after those it knows, and a step that does not exceed the last one
discards the points from there on. So a new file can replace the old one while a server is running.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DataType

from bnlab.core.safe import no_link
from bnlab.record.folder import RunFolder

Profile = Literal["full", "light"]
"""How much of a run its event file shows (run.py). It is the end of the file's name."""

PATTERN = "events.out.tfevents.*"
PART = ".board.part"
"""The name of an incomplete file: TensorBoard reads only files with `tfevents` in their names."""

SEAL = "bnlab board 2: {:015d} bytes"
"""In the last event. A change of the number makes bnlab write all older files again."""


class EventFile:
    """An event file, open for writing."""

    def __init__(self, folder: Path) -> None:
        """A new file in `folder`, which must exist. TensorBoard does not read it until `publish`."""
        self.path = folder / PART
        self._file = open(self.path, "wb", opener=no_link)  # noqa: SIM115  (closed by close())
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, step: int, wall_s: float, summary: bytes) -> None:
        """One event. `summary` is a serialized Summary, or several in a row: protobuf joins their repeated fields. An
        empty one is not written."""
        if not summary:
            return
        head = Event(wall_time=wall_s, step=step).SerializeToString()
        self._write(head + _SUMMARY_FIELD + _varint(len(summary)) + summary)

    def flush(self) -> None:
        self._file.flush()

    def publish(self, ending: str) -> None:
        """Replace the other event files of the folder by this one, whose name then ends in `ending`. The name sorts
        after theirs: TensorBoard reads files in the order of their names and never returns to an earlier one."""
        old = list(self.path.parent.glob(PATTERN))
        seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
        name = f"events.out.tfevents.{seconds:010d}.{micros:06d}.{socket.gethostname()}.{os.getpid()}.{ending}"
        self._file.close()
        self.path = self.path.replace(self.path.with_name(name))
        self._file = open(self.path, "ab", opener=no_link)  # noqa: SIM115  (closed by close())
        for file in old:
            file.unlink(missing_ok=True)

    def seal(self, wall_s: float, shown: int) -> None:
        """The last event, which TensorBoard ignores: the file shows the whole of a journal of `shown` bytes."""
        log = SessionLog(status=SessionLog.STOP, msg=SEAL.format(shown))
        self._write(Event(wall_time=wall_s, session_log=log).SerializeToString())

    def close(self) -> None:
        """A file that was not published is removed."""
        self._file.close()
        if self.path.name == PART:
            self.path.unlink(missing_ok=True)

    def _write(self, message: bytes) -> None:
        """Length, its masked checksum, the message, its masked checksum."""
        length = struct.pack("<Q", len(message))
        self._file.write(length + _masked_crc(length) + message + _masked_crc(message))


def sealed_bytes(file: Path) -> int | None:
    """How many bytes of its journal an event file shows; None for a file without a seal, which is incomplete."""
    length = len(SEAL.format(0))
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - length - 4))
        text = opened.read(length)  # the event's checksum follows
    found = re.fullmatch(SEAL.replace("{:015d}", r"(\d{15})").encode(), text)
    return int(found[1]) if found else None


def profile_of(folder: RunFolder) -> Profile | None:
    """The profile of the run's event file; None unless there is exactly one and it shows the whole journal."""
    files = list(folder.path.glob(PATTERN))
    if len(files) != 1 or sealed_bytes(files[0]) != folder.journal_bytes:
        return None
    return next((profile for profile in get_args(Profile) if files[0].name.endswith(f".{profile}")), None)


def write(folder: Path, by_step: Mapping[int, bytes]) -> None:
    """Make the run in `folder` show these summaries and nothing else. A run that shows them already is left as it is:
    its file's name ends in their hash."""
    events = [(step, by_step[step]) for step in sorted(by_step) if by_step[step]]
    digest = hashlib.sha256(repr(events).encode()).hexdigest()[:16]
    if max((file.name for file in folder.glob(PATTERN)), default="").endswith(f".{digest}"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = EventFile(folder)
    for step, message in events:
        file.add(step, time.time(), message)
    file.publish(digest)
    file.close()


def scalar(tag: str, value: float) -> bytes:
    """A Summary of one number. Its four bytes are the last of the message."""
    return _summary(Summary.Value(tag=tag, simple_value=value))


def histogram(tag: str, counts: Sequence[float], limits: Sequence[float]) -> bytes:
    """A Summary of one histogram: bin i holds counts[i] values between limits[i] and limits[i + 1]."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(limits)]
    histo = HistogramProto(
        min=limits[0],
        max=limits[-1],
        num=float(sum(counts)),
        sum=float(sum(count * x for count, x in zip(counts, middles, strict=True))),
        sum_squares=float(sum(count * x * x for count, x in zip(counts, middles, strict=True))),
        bucket_limit=limits[1:],
        bucket=counts,
    )
    return _summary(Summary.Value(tag=tag, histo=histo))


def _summary(value: Any) -> bytes:
    """A serialized Summary of one value."""
    message: bytes = Summary(value=[value]).SerializeToString()
    return message


def tensor_value(tag: str, metadata: Any, tensor: Any) -> bytes:
    """A Summary for one of TensorBoard's plugins, which its metadata names."""
    return _summary(Summary.Value(tag=tag, metadata=metadata, tensor=tensor))


def strings(tag: str, metadata: Any, values: Sequence[bytes], *, is_vector: bool = False) -> bytes:
    """A Summary of a tensor of strings: a vector, or a scalar of one string."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))] if is_vector else [])
    tensor = TensorProto(dtype=DataType.DT_STRING, tensor_shape=shape, string_val=values)
    return tensor_value(tag, metadata, tensor)


_SUMMARY_FIELD = bytes([Event.DESCRIPTOR.fields_by_name["summary"].number << 3 | 2])
"""The tag of Event.summary on the wire: its number, and the type of a field with a length."""


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, the lowest first."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the TFRecord format requires."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
