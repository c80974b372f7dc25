"""Histograms of a site's values, in bins that are fine near 0 and reach far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HISTOGRAM_LIMIT = 1000.0
HISTOGRAM_BINS = 120


def histogram(x: Tensor) -> Tensor:
    """Counts [HISTOGRAM_BINS + 2] of all values of x: below -HISTOGRAM_LIMIT, the bins between `histogram_edges`, and
    above HISTOGRAM_LIMIT. NaN is counted nowhere.

    >>> histogram(torch.tensor([-2000.0, 0.01, 0.01, 5000.0]))[[0, 61, 121]].tolist()
    [1.0, 2.0, 1.0]
    """
    limit = math.asinh(HISTOGRAM_LIMIT)
    stretched = torch.asinh(x.detach())
    inside = torch.histc(stretched, bins=HISTOGRAM_BINS, min=-limit, max=limit)
    tails = [(stretched < -limit).sum(), (stretched > limit).sum()]
    return torch.cat([tails[0][None].to(inside), inside, tails[1][None].to(inside)])


def histogram_edges() -> list[float]:
    """The HISTOGRAM_BINS + 1 edges between the tail bins, from -HISTOGRAM_LIMIT to HISTOGRAM_LIMIT."""
    limit = math.asinh(HISTOGRAM_LIMIT)
    return [math.sinh(limit * (2 * index / HISTOGRAM_BINS - 1)) for index in range(HISTOGRAM_BINS + 1)]
