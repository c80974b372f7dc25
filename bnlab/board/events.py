"""Event files, as TensorBoard reads them: events in the framing of a TFRecord.

TensorBoard's own writer starts a thread and a queue for each file; a run here writes its records by dozens, from the
loop, and wants to know when they are on the disk.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event

PATTERN = "events.out.tfevents.*"


class EventFile:
    """An event file that is being written."""

    def __init__(self, folder: Path) -> None:
        """A new one in `folder`, which is there."""
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115  (closed by close())
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, step: int, wall_s: float, summary: bytes) -> None:
        """One event; `summary` is a serialized Summary, or several in a row: repeated fields are joined by that."""
        head = Event(wall_time=wall_s, step=step).SerializeToString()
        self._write(head + _SUMMARY_FIELD + _varint(len(summary)) + summary)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, message: bytes) -> None:
        """Length, its masked checksum, the message, its masked checksum."""
        length = struct.pack("<Q", len(message))
        self._file.write(length + _masked_crc(length) + message + _masked_crc(message))


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
