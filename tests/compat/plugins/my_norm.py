"""Batch norm by the median absolute value, without taking the mean away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.norms.base import Eps
from bnlab.registry import NORMS


@NORMS.register("my_norm", traits={"batch_statistics"})
class MyNorm(nn.Module):
    """y = gamma * x / (the batch's median of |x| per channel + eps); in use, with a running median."""

    running_median: Tensor

    def __init__(self, channels: int, dims: int, *, eps: Eps = 1e-5, share: float = 0.1) -> None:
        super().__init__()
        self.eps, self.share = eps, share
        self.shape = (1, channels, 1, 1) if dims else (1, channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_median", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        median = self.running_median
        if self.training:
            median = x.abs().transpose(0, 1).flatten(1).median(dim=1).values  # [C]
            with torch.no_grad():
                self.running_median += self.share * (median - self.running_median)
        return self.gamma.view(self.shape) * x / (median.view(self.shape) + self.eps)
