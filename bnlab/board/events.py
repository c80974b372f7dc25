"""Event files, as TensorBoard reads them: events in the framing of a TFRecord.

TensorBoard's own writer starts a thread and a queue for each file; a run here writes its records by dozens, from the
loop, and wants to know when they are on the disk.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import Literal

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from bnlab.record.folder import RunFolder

Profile = Literal["full", "light"]
"""How much of a run its event file shows (run.py). It stands at the end of the file's name."""

PROFILES: tuple[Profile, ...] = ("full", "light")
PATTERN = "events.out.tfevents.*"


def new_name(profile: Profile | None = None) -> str:
    """The name of a file that comes, by name, after all that were made before it: so TensorBoard reads them, and to a
    file whose name it has read once it does not come back."""
    seconds, rest = divmod(time.time_ns() // 1000, 1_000_000)
    name = f"events.out.tfevents.{seconds:010d}.{rest:06d}.{socket.gethostname()}.{os.getpid()}"
    return f"{name}.{profile}" if profile else name


class EventFile:
    """An event file that is being written."""

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        """A new one in `folder`, which is there. TensorBoard looks at files with `tfevents` in their names alone."""
        self.path = folder / (name or new_name())
        self._file = open(self.path, "wb")  # noqa: SIM115  (closed by close())
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, step: int, wall_s: float, summary: bytes) -> None:
        """One event; `summary` is a serialized Summary, or several in a row: repeated fields are joined by that."""
        head = Event(wall_time=wall_s, step=step).SerializeToString()
        self._write(head + _SUMMARY_FIELD + _varint(len(summary)) + summary)

    def flush(self) -> None:
        self._file.flush()

    def move(self, name: str) -> None:
        """To another name in its folder, with all that was added."""
        self._file.close()
        self.path = self.path.replace(self.path.with_name(name))
        self._file = open(self.path, "ab")  # noqa: SIM115  (closed by close())

    def seal(self, wall_s: float, shown: int) -> None:
        """The last event, of which TensorBoard takes no notice: shown is the whole of a journal of so many bytes."""
        log = SessionLog(status=SessionLog.STOP, msg=SEAL.format(shown))
        self._write(Event(wall_time=wall_s, session_log=log).SerializeToString())

    def close(self) -> None:
        self._file.close()

    def _write(self, message: bytes) -> None:
        """Length, its masked checksum, the message, its masked checksum."""
        length = struct.pack("<Q", len(message))
        self._file.write(length + _masked_crc(length) + message + _masked_crc(message))


SEAL = "bnlab board 1: {:015d} bytes"
"""In the last event; another number where files are written otherwise, so that older ones are made anew."""


def sealed(file: Path) -> int | None:
    """How many bytes of its journal an event file shows; None where it does not say: it was not written to its end."""
    length = len(SEAL.format(0))
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - length - 4))
        text = opened.read(length)  # what follows is the event's checksum
    found = re.fullmatch(SEAL.replace("{:015d}", r"(\d{15})").encode(), text)
    return int(found[1]) if found else None


def shown(folder: RunFolder) -> Profile | None:
    """The profile of the run's event file, if that is one file, and shows the whole journal."""
    files = list(folder.path.glob(PATTERN))
    if len(files) != 1:
        return None
    profile = next((name for name in PROFILES if files[0].name.endswith(f".{name}")), None)
    if profile is None or sealed(files[0]) != folder.journal_file.stat().st_size:
        return None
    return profile


_SUMMARY_FIELD = bytes([Event.DESCRIPTOR.fields_by_name["summary"].number << 3 | 2])
"""The tag of Event.summary on the wire: its number, and "a length follows"."""


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, the lowest first."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the TFRecord format has it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
