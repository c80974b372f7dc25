"""Mean and variance of every site's pre-activations on the training batch, from the training forward itself.

Legend: B batch, C channels, L sites. No extra forward: where a batch norm has computed them already, they are read out
of its saved statistics; elsewhere two passes over the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor

from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot
from bnlab.registry import PROBES


@PROBES.register("batch_moments")
class BatchMoments:
    """At `pre`, in batch mode."""

    needs: ClassVar[frozenset[Need]] = frozenset({"training_sites"})
    metrics: ClassVar[Mapping[str, str]] = {
        "batch_mean": "mean over channels of the channel mean of pre, training batch",
        "batch_var": "mean over channels of the channel variance (biased) of pre, training batch",
    }

    def __init__(self) -> None:
        self._eps: list[float | None] = []  # of the sites whose batch norm kept its statistics

    def measure(self, snapshot: Snapshot) -> Raw:
        seen = snapshot.training
        self._eps = [kept.eps if kept else None for kept in seen.saved]
        raw: Raw = {}
        for index, (pre, kept) in enumerate(zip(seen.pre, seen.saved, strict=True)):
            mean, spread = channel_moments(pre.detach()) if kept is None else (kept.mean, kept.inverse_sd)
            raw |= {f"mean.{index}": mean, f"spread.{index}": spread}
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        spreads = [raw[f"spread.{index}"] for index in range(len(self._eps))]
        variances = [
            spread.mean() if eps is None else (spread**-2).mean() - eps  # 1 / sqrt(variance + eps) was kept
            for spread, eps in zip(spreads, self._eps, strict=True)
        ]
        means = [raw[f"mean.{index}"].mean() for index in range(len(self._eps))]
        return {"batch_mean": np.stack(means), "batch_var": np.stack(variances)}, carry


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, each [C], of x [B, C] or [B, C, H, W]. Two passes: exact where one-pass
    formulas cancel, and on the CPU several times faster than `torch.var_mean`.

    >>> import torch
    >>> [moment.tolist() for moment in channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(dim=over, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(dim=over)
