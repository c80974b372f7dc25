"""Batch normalization (Ioffe & Szegedy 2015, algorithm 1), torch's own."""

from __future__ import annotations

from torch import nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import Eps, Momentum


@NORMS.register("batch", title="batch norm", traits={"batch_statistics", "cancels_bias"})
def batch(channels: int, dims: int, *, eps: Eps, momentum: Momentum, affine: bool) -> nn.Module:
    """Over the batch per feature (dims 0, input [B, C]) or per channel over batch and space (dims 1,
    [B, C, T]; dims 2, [B, C, H, W])."""
    layer = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return layer(channels, eps=eps, momentum=momentum, affine=affine)
