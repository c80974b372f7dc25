"""Counts of a probe as TensorBoard's histograms, and how many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

from bnlab.probes.activations import HISTOGRAM_LIMIT, histogram_edges
from bnlab.record.journal import Record

MOST_STEPS = 50
PREFIX = "histogram."


class Histograms:
    """The histograms of a run's records, of at most 50 steps: one in each of 50 equal parts of the run."""

    def __init__(self, steps: int) -> None:
        """`steps`: of the whole run."""
        self.steps, self.left_out = max(1, steps), False
        self._part = -1

    def of(self, record: Record) -> bytes:
        """Those to be written for this record."""
        keys = [key for key in record if key.startswith(PREFIX)]
        if not keys:
            return b""
        part = min(record["step"] * MOST_STEPS // self.steps, MOST_STEPS - 1)
        if part == self._part:
            self.left_out = True
            return b""
        self._part = part
        message: bytes = Summary(value=[_histogram(key, record[key]) for key in keys]).SerializeToString()
        return message


def _histogram(key: str, counts: Sequence[float]) -> Any:
    """`histogram.act_in.L03_fc` with its counts, as TensorBoard's histogram. TensorBoard draws from the first bucket
    to the last on a linear axis, so empty ones at the ends are left out; each tail bin is drawn just outside the
    limit."""
    _, point, site = key.split(".", 2)
    counts = np.asarray(counts, dtype=np.float64).tolist()  # sums of a running record are not to be in float32
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
