"""Mean and variance of every site's pre-activations on the training batch, from the training forward itself.

Legend: B batch, C channels, L sites. No extra forward: where a batch norm has computed them already, they are read out
of its saved statistics; elsewhere two passes over the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.net.build import Net
from bnlab.net.wrap import SavedMoments, saved_eps, site_shapes
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot


class Layout(NamedTuple):
    """Of every site."""

    channels: list[int]
    eps: list[float | None]
    """Where pre is seen by a batch norm with a `saved_eps`, this: the spread in `Raw` is there the norm's own
    1 / sqrt(variance + eps), and the variance elsewhere."""


@PROBES.register("batch_moments")
class BatchMoments:
    """At `pre`, in batch mode."""

    only_reads = True
    needs: ClassVar[frozenset[Need]] = frozenset({"training_sites"})
    metrics: ClassVar[Mapping[str, str]] = {
        "batch_mean": "mean over channels of the channel mean of pre, training batch",
        "batch_var": "mean over channels of the channel variance (biased) of pre, training batch; below a batch norm "
        "of eps <= 1e-3, in float32, exact to 3e-7 (variance + eps)",
    }
    groups: ClassVar[Mapping[str, str]] = {
        "batch_mean": "7_batch_mean",
        "batch_var": "8_batch_var",
    }

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Layout:
        norms = [site.norm if site.norm_first else None for site in net.sites]
        return Layout(
            channels=[shape[0] for shape in site_shapes(net, input_shape)],
            eps=[saved_eps(norm) for norm in norms],
        )

    def measure(self, snapshot: Snapshot, layout: Layout) -> Raw:
        means, spreads = [], []
        for pre, eps in zip(snapshot.training.pre, layout.eps, strict=True):
            if isinstance(pre, SavedMoments):
                mean, spread = pre
            else:
                mean, spread = channel_moments(pre)
                if eps is not None:
                    spread = (spread + eps).rsqrt()
            means.append(mean)
            spreads.append(spread)
        return {"mean": torch.cat(means), "spread": torch.cat(spreads)}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, layout: Layout) -> tuple[Metrics, Carry]:
        variances = raw["spread"].copy()
        saved = np.repeat([eps is not None for eps in layout.eps], layout.channels)
        eps = np.repeat(np.array(layout.eps, variances.dtype), layout.channels)[saved]
        variances[saved] = np.maximum(variances[saved] ** -2 - eps, 0)  # rounding may take 0 below 0
        starts = np.cumsum([0, *layout.channels[:-1]])
        mean, var = (np.add.reduceat(x, starts) / layout.channels for x in (raw["mean"], variances))
        dtype = raw["mean"].dtype
        return {"batch_mean": mean.astype(dtype), "batch_var": var.astype(dtype)}, carry


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, each [C], of x [B, C] or [B, C, H, W]. Two passes: exact where one-pass
    formulas cancel, and on the CPU several times faster than `torch.var_mean`.

    >>> [moment.tolist() for moment in channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    over = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(dim=over, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(dim=over)
