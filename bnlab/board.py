"""The TensorBoard view of a journal: the only importer of tensorboard.

The event file is a view. It is written from the same records as the journal, one event a record, and written anew from
the journal when a run resumes, so that every reader agrees with the journal. Natural metric names would bury the loss
under hundreds of cards (groups are sorted by name, and only the first are open), so here, and only here, metrics get
numbered groups.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

from bnlab.journal import Record
from bnlab.probes.activations import HISTOGRAM_LIMIT, histogram_edges

PROGRESS = {
    "train_loss": "1_progress/loss",
    "train_accuracy": "1_progress/accuracy",
    "test_loss": "1_progress/eval_loss",
    "test_accuracy": "1_progress/eval_accuracy",
    "lr": "1_progress/lr",
    "grad_norm_total": "4_grad_norm/00_total",
    "first_over_last": "4_grad_norm/00_first_over_last",
    "grad_noise": "4_grad_norm/00_noise",
}
"""Scalars."""

GROUPS = {
    "drift_mean": "2_drift_mean",
    "drift_mean_total": "2_drift_mean_total",
    "drift_logvar": "3_drift_logvar",
    "drift_logvar_total": "3_drift_logvar_total",
    "grad_norm": "4_grad_norm",
    "delta_norm": "4_grad_norm_delta",
    "update_ratio": "4_grad_norm_update_ratio",
    "act_mean": "7_act_mean",
    "batch_mean": "7_batch_mean",
    "act_var": "8_act_var",
    "batch_var": "8_batch_var",
    "dead_fraction": "8_dead_units",
}
"""One value a site: a median over the sites, then every site."""

PERCENTILES = {"act_p15": "p15", "act_p50": "p50", "act_p85": "p85"}
"""Of the first, the middle and the last hidden site only."""

Source = tuple[str, str, int | None]
"""A tag, the metric it shows, and which value of it: a site's index, None for the median of the sites, -1 for a scalar."""


class Board:
    """Writes one run's event file."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder, self.sites = folder, list(sites)
        self._templates: dict[tuple[str, ...], tuple[Event, list[tuple[Any, Source]]]] = {}
        self._file: Any = None

    def rewrite(self, records: Iterable[Record]) -> None:
        """A new event file that shows `records`, in place of what was there."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.folder / name, "wb")  # noqa: SIM115  (closed by close())
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        for record in records:
            self.add(record)
        self.flush()

    def add(self, record: Record) -> None:
        """One event for one record. A value that is not finite is shown as NaN, which TensorBoard marks."""
        keys = tuple(record)
        if keys not in self._templates:
            self._templates[keys] = self._template(record)
        event, values = self._templates[keys]
        event.wall_time, event.step = record["wall_s"], record["step"]
        for value, (_, metric, index) in values:
            value.simple_value = _shown(record[metric], index)
        del event.summary.value[len(values) :]
        for key in keys:
            if key.startswith("histogram."):
                event.summary.value.append(_histogram(key, record[key]))
        self._write(event)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _template(self, record: Record) -> tuple[Event, list[tuple[Any, Source]]]:
        """The event of records with these keys, its values to be filled in: building it anew would cost ten times more."""
        sources = tags(record, self.sites)
        event = Event(summary=Summary(value=[Summary.Value(tag=tag, simple_value=0.0) for tag, _, _ in sources]))
        return event, list(zip(event.summary.value, sources, strict=True))

    def _write(self, event: Event) -> None:
        """TFRecord framing: length, its masked checksum, the message, its masked checksum."""
        message = event.SerializeToString()
        length = struct.pack("<Q", len(message))
        self._file.write(length + _masked_crc(length) + message + _masked_crc(message))


def tags(record: Record, sites: Sequence[str]) -> list[Source]:
    """What a record shows, under which tags."""
    found: list[Source] = []
    for metric, value in record.items():
        name, _, point = metric.partition(".")
        suffix = f"_{point}" if point else ""
        if metric in ("step",) or metric.endswith("_s") or name == "histogram":
            continue
        if metric in PROGRESS or _is_scalar(value):
            found.append((PROGRESS.get(metric, f"5_other/{metric}"), metric, -1))
        elif name == "sampling_floor":
            found.append((f"2_drift_mean{suffix}/00_sampling_floor", metric, None))
        elif name in PERCENTILES:
            shown = sorted({0, max(0, len(sites) - 2) // 2, max(0, len(sites) - 2)})
            found += [(f"6_act_percentiles{suffix}/{sites[i]}_{PERCENTILES[name]}", metric, i) for i in shown]
        else:
            group = GROUPS.get(name, f"5_{name}") + suffix
            found.append((f"{group}/00_median_of_layers", metric, None))
            found += [(f"{group}/{site}", metric, index) for index, site in enumerate(sites)]
    return sorted(found)


def _is_scalar(value: Any) -> bool:
    return value is None or not hasattr(value, "__len__")


def _shown(value: Any, index: int | None) -> float:
    if index is None:
        finite = [float(item) for item in value if item is not None and math.isfinite(item)]
        return statistics.median(finite) if finite else math.nan
    item = value if index == -1 else value[index]
    return math.nan if item is None else float(item)


def _histogram(key: str, counts: Sequence[float]) -> Any:
    """`histogram.act_in.L03_fc` with its counts, as TensorBoard's histogram; each tail bin is drawn just outside."""
    _, point, site = key.split(".", 2)
    edges = histogram_edges()
    # TensorBoard's bucket i ends at limit i, and the first begins at `min`.
    limits = [*edges, 2 * HISTOGRAM_LIMIT]
    filled = [index for index, count in enumerate(counts) if count]
    low = limits[filled[0] - 1] if filled and filled[0] else -2 * HISTOGRAM_LIMIT
    high = limits[filled[-1]] if filled else 2 * HISTOGRAM_LIMIT
    middle = [(left + right) / 2 for left, right in zip([-2 * HISTOGRAM_LIMIT, *edges], limits, strict=True)]
    total = float(sum(counts))
    histo = HistogramProto(
        min=low,
        max=high,
        num=total,
        sum=float(sum(count * x for count, x in zip(counts, middle, strict=True))),
        sum_squares=float(sum(count * x * x for count, x in zip(counts, middle, strict=True))),
        bucket_limit=limits,
        bucket=[float(count) for count in counts],
    )
    return Summary.Value(tag=f"9_hist_{point}/{site}", histo=histo)


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the TFRecord format has it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
