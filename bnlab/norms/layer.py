"""Layer normalization (Ba et al. 2016), torch's own."""

from __future__ import annotations

from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.norms.base import Eps


@NORMS.register("layer", title="layer norm")
def layer(channels: int, dims: int, *, eps: Eps, affine: bool) -> nn.Module:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased moments of one example: over its features
    (dense), or over C, H, W (convolution), which is group normalization with one group. gamma and beta per channel.

    Raises:
        UsageError: a layer of one unit, whose normalized value is always 0.
    """
    if dims:
        return nn.GroupNorm(1, channels, eps=eps, affine=affine)
    if channels < 2:
        raise UsageError("norm", "norm=layer needs layers of at least two units", channels, "Use wider layers.")
    return nn.LayerNorm(channels, eps=eps, elementwise_affine=affine)
