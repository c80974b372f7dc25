"""Mean and variance of every site's pre-activations on the training batch, from the training forward itself.

Legend: B batch, C channels, L sites. No extra forward: where a batch norm has computed them already, they are read out of
its saved statistics; elsewhere two passes over the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bnlab.probes.base import Carry, Metrics, Moments, Need, Snapshot
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
        pass

    def measure(self, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
        seen = snapshot.training
        means, variances = [], []
        for pre, saved in zip(seen.pre, seen.saved, strict=True):
            mean, var = saved or channel_moments(pre.detach())
            means.append(mean.mean())
            variances.append(var.mean())
        return {"batch_mean": torch.stack(means), "batch_var": torch.stack(variances)}, carry


def channel_moments(x: Tensor) -> Moments:
    """Mean and biased variance per channel, each [C], of x [B, C] or [B, C, H, W]. Two passes: exact where one-pass
    formulas cancel, and on the CPU several times faster than `torch.var_mean`.

    >>> [moment.tolist() for moment in channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(dim=over, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(dim=over)
