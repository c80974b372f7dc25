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
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
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
    **{
        f"{prefix}{name}": f"5_landscape/{prefix}{name}"
        for prefix in ("", "random_")
        for name in ("loss_lo", "loss_hi", "loss_range", "grad_change", "grad_change_rel", "eta_beta_half")
    },
    "lambda_max": "5_sharpness/lambda_max",
    "eta_lambda_half": "5_sharpness/eta_lambda_half",
    **{f"lambda_{rank}": f"5_sharpness/lambda_{rank}" for rank in range(2, 11)},
}
"""Scalars."""

GROUPS = {
    "drift_mean": "2_drift_mean",
    "drift_mean_total": "2_drift_mean_total",
    "drift50": "2_drift_median",
    "drift_logvar": "3_drift_logvar",
    "drift_logvar_total": "3_drift_logvar_total",
    "grad_norm": "4_grad_norm",
    "delta_norm": "4_grad_norm_delta",
    "update_ratio": "4_grad_norm_update_ratio",
    "abs_over_sum": "4_gradient_abs_over_sum",
    "grad_kurtosis": "4_gradient_kurtosis",
    "ics": "5_ics",
    "ics_rel": "5_ics_rel",
    "ics_cos": "5_ics_cos",
    "thm41_error": "5_lipschitz_error",
    "thm41_raw": "5_lipschitz_raw",
    "thm41_mean": "5_lipschitz_mean",
    "thm41_corr": "5_lipschitz_corr",
    "bn_mean_gap": "5_bn_mean_gap",
    "bn_var_gap": "5_bn_var_gap",
    "bn_mean_noise": "5_bn_noise_of_mean",
    "bn_sd_noise": "5_bn_noise_of_sd",
    "bn_gamma_mean": "5_bn_gamma_mean",
    "bn_gamma_sd": "5_bn_gamma_sd",
    "bn_beta_mean": "5_bn_beta_mean",
    "bn_beta_sd": "5_bn_beta_sd",
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
"""A tag, the metric it shows, and which value of it: a site's index, None for the median of the sites, -1 for a
scalar."""


class Board:
    """Writes one run's event file."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder, self.sites = folder, list(sites)
        self._templates: dict[tuple[str, ...], _Template] = {}
        self._file: Any = None

    def rewrite(self, records: Iterable[Record]) -> None:
        """A new event file that shows `records`, in place of what was there."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(self.folder / name, "wb")  # noqa: SIM115  (closed by close())
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for record in records:
            self.add(record)
        self.flush()

    def add(self, record: Record) -> None:
        """One event for one record. A value that is not finite is shown as NaN, which TensorBoard marks."""
        keys = tuple(record)
        if keys not in self._templates:
            self._templates[keys] = _Template(tags(record, self.sites), len(self.sites))
        summary = self._templates[keys].filled(record)
        histograms = [_histogram(key, record[key]) for key in keys if key.startswith("histogram.")]
        if histograms:
            summary += Summary(value=histograms).SerializeToString()  # repeated fields are joined by being put in a row
        head = Event(wall_time=record["wall_s"], step=record["step"]).SerializeToString()
        self._write(head + _SUMMARY_FIELD + _varint(len(summary)) + summary)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, message: bytes) -> None:
        """TFRecord framing: length, its masked checksum, the message, its masked checksum."""
        length = struct.pack("<Q", len(message))
        self._file.write(length + _masked_crc(length) + message + _masked_crc(message))


class _Template:
    """The summary of records with the same keys, serialized once by protobuf; for each record its numbers are put in
    their places. Hundreds of scalars then cost little more than one."""

    def __init__(self, sources: Sequence[Source], sites: int) -> None:
        self.sites = sites
        self.scalars = [metric for _, metric, index in sources if index == -1]
        self.vectors = list(dict.fromkeys(metric for _, metric, index in sources if index != -1))
        row = {metric: number for number, metric in enumerate(self.vectors)}
        width = sites + 1  # every site, then the median
        self._take = [
            self.scalars.index(metric)
            if index == -1
            else len(self.scalars) + row[metric] * width + (sites if index is None else index)
            for _, metric, index in sources
        ]
        message, ends = b"", []
        for tag, _, _ in sources:
            message += Summary(value=[Summary.Value(tag=tag, simple_value=1.0)]).SerializeToString()
            ends.append(len(message))  # a float's four bytes are the last of its value
        self._bytes = np.frombuffer(message, dtype=np.uint8).copy()
        self._places = np.asarray(ends, dtype=np.int64)[:, None] + np.arange(-4, 0)

    def filled(self, record: Record) -> bytes:
        """The summary's bytes with the numbers of `record`."""
        scalars = [math.nan if record[metric] is None else record[metric] for metric in self.scalars]
        vectors = np.array([record[metric] for metric in self.vectors], dtype=np.float32).reshape(-1, self.sites)
        table = np.column_stack([vectors, finite_medians(vectors)])
        numbers = np.concatenate([np.array(scalars, dtype=np.float32), table.ravel()])[self._take]
        self._bytes[self._places] = numbers.view(np.uint8).reshape(-1, 4)
        message: bytes = self._bytes.tobytes()
        return message


def finite_medians(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The median of each row's finite values, NaN where there is none.

    >>> finite_medians(np.array([[3.0, 1.0, np.nan, 2.0], [np.inf, 1.0, 4.0, np.nan]])).tolist()
    [2.0, 2.5]
    """
    finite = np.isfinite(rows)
    ordered = np.sort(np.where(finite, rows, np.nan), axis=1)  # NaN comes last
    count = finite.sum(axis=1)
    line = np.arange(len(rows))
    middle: np.ndarray[Any, Any] = ordered[line, np.maximum(count - 1, 0) // 2] + ordered[line, count // 2]
    return middle / 2


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


def _histogram(key: str, counts: Sequence[float]) -> Any:
    """`histogram.act_in.L03_fc` with its counts, as TensorBoard's histogram. TensorBoard draws from the first bucket
    to the last on a linear axis, so empty ones at the ends are left out; each tail bin is drawn just outside the
    limit."""
    _, point, site = key.split(".", 2)
    limits = [-2 * HISTOGRAM_LIMIT, *histogram_edges(), 2 * HISTOGRAM_LIMIT]  # bin i lies between limits i and i + 1
    filled = [index for index, count in enumerate(counts) if count] or [len(counts) // 2]
    kept = range(filled[0], filled[-1] + 1)
    middles = [(limits[index] + limits[index + 1]) / 2 for index in kept]
    histo = HistogramProto(
        min=limits[kept[0]],
        max=limits[kept[-1] + 1],
        num=float(sum(counts)),
        sum=float(sum(counts[index] * x for index, x in zip(kept, middles, strict=True))),
        sum_squares=float(sum(counts[index] * x * x for index, x in zip(kept, middles, strict=True))),
        bucket_limit=[limits[index + 1] for index in kept],
        bucket=[float(counts[index]) for index in kept],
    )
    return Summary.Value(tag=f"9_hist_{point}/{site}", histo=histo)


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
