"""Mean and variance of every site's pre-activations on the training batch, from the training forward itself.

Legend: B batch, C channels, L sites. No extra forward: where a batch norm has computed them already, they are read out
of its saved statistics; elsewhere two passes over the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.net.wrap import SavedMoments
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot


@PROBES.register("batch_moments")
class BatchMoments:
    """At `pre`, in batch mode."""

    needs: ClassVar[frozenset[Need]] = frozenset({"training_sites"})
    metrics: ClassVar[Mapping[str, str]] = {
        "batch_mean": "mean over channels of the channel mean of pre, training batch",
        "batch_var": "mean over channels of the channel variance (biased) of pre, training batch",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "batch_mean": "7_batch_mean",
        "batch_var": "8_batch_var",
    }

    def __init__(self) -> None:
        self._kept: list[float] = []  # eps of each site whose batch norm kept its statistics
        self._sizes: list[int] = []  # channels of all sites, those first
        self._sites: list[int] = []  # their indices

    def measure(self, snapshot: Snapshot) -> Raw:
        seen = snapshot.training
        kept = {index: pre for index, pre in enumerate(seen.pre) if isinstance(pre, SavedMoments)}
        rest = {index: channel_moments(pre) for index, pre in enumerate(seen.pre) if isinstance(pre, Tensor)}
        means = [*(saved.mean for saved in kept.values()), *(mean for mean, _ in rest.values())]
        self._kept = [saved.eps for saved in kept.values()]
        self._sizes, self._sites = [len(mean) for mean in means], [*kept, *rest]
        return {
            "mean": torch.cat(means),
            "spread": torch.cat([*(saved.inverse_sd for saved in kept.values()), *(var for _, var in rest.values())]),
        }

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        variances, kept = raw["spread"].copy(), len(self._kept)
        of_kept = variances[: sum(self._sizes[:kept])]  # 1 / sqrt(variance + eps): rounding may take 0 below 0
        of_kept[:] = np.maximum(of_kept**-2 - np.repeat(np.asarray(self._kept, of_kept.dtype), self._sizes[:kept]), 0)
        starts = np.cumsum([0, *self._sizes[:-1]])
        mean, var = (np.add.reduceat(x, starts) / self._sizes for x in (raw["mean"], variances))
        order = np.argsort(self._sites)
        dtype = raw["mean"].dtype
        return {"batch_mean": mean[order].astype(dtype), "batch_var": var[order].astype(dtype)}, carry


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, each [C], of x [B, C] or [B, C, H, W]. Two passes: exact where one-pass
    formulas cancel, and on the CPU several times faster than `torch.var_mean`.

    >>> [moment.tolist() for moment in channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(dim=over, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(dim=over)
