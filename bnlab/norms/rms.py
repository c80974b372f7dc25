"""Root mean square layer normalization (Zhang & Sennrich 2019); for dense layers torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm, Eps


@NORMS.register("rms", title="RMS norm")
def rms(channels: int, dims: int, *, eps: Eps, affine: bool) -> nn.Module:
    """y = gamma * x / sqrt(mean(x^2) + eps) over the features of one example (dense), or over its C, H, W
    (convolution). gamma per channel; no beta, as in the paper."""
    return ConvRms(channels, dims, eps, affine) if dims else nn.RMSNorm(channels, eps=eps, elementwise_affine=affine)


class ConvRms(ChannelNorm):
    """Over C, H, W with gamma per channel, where torch's has one gamma per element."""

    def __init__(self, channels: int, dims: int, eps: float, affine: bool) -> None:
        super().__init__(channels, dims, gamma=affine, beta=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T] or [B, C, H, W]
        mean = x.square().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
        return self.affine(x * torch.rsqrt(mean + self.eps))
