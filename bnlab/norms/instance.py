"""Instance normalization (Ulyanov et al. 2016), torch's own."""

from __future__ import annotations

from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.norms.base import Eps


@NORMS.register("instance", title="instance norm", traits={"space_statistics", "cancels_bias"})
def instance(channels: int, dims: int, *, eps: Eps, affine: bool) -> nn.Module:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased moments of one channel of one example, over H, W;
    the same in training and in evaluation.

    Raises:
        UsageError: a dense layer, whose channels have one value per example.
    """
    if not dims:
        remedy = "Use norm=layer, or a convolutional net."
        raise UsageError("norm", "a dense layer has one value per channel and example", "instance", remedy)
    kind = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm1d
    return kind(channels, eps=eps, affine=affine)
