"""Batch normalization written from its formula, to hold torch's against. Legend: B batch, C channels, H W space.

In training, with m = B (dense) or B H W (convolution) values per channel:

    mean = sum(x) / m        var = sum((x - mean)^2) / m        x_hat = (x - mean) / sqrt(var + eps)
    y = gamma * x_hat + beta

and the running statistics move by `momentum` towards mean and towards the unbiased variance var * m / (m - 1); with
`momentum: null` they are the plain average over all batches so far. In use, the running statistics replace mean and
var. (Ioffe & Szegedy 2015, algorithms 1 and 2.)
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from bnlab.core.registry import NORMS


@NORMS.register("batch_reference", title="batch norm (reference)", traits={"batch_statistics", "cancels_bias"})
class BatchReference(nn.Module):
    """The formula, one line a step; gradients by autograd through it."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        dims: int,
        *,
        eps: Annotated[float, Gt(0), Lt(math.inf)],
        momentum: Annotated[float, Ge(0), Le(1)] | None,
        affine: bool,
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.over = (0, 2, 3) if dims else (0,)
        self.shape = (1, channels, 1, 1) if dims else (1, channels)
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None  # gamma
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None  # beta
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:  # [B, C] or [B, C, H, W]
        if self.training:
            mean = x.mean(dim=self.over)  # [C]
            var = ((x - mean.view(self.shape)) ** 2).mean(dim=self.over)  # [C], biased
            self._track(mean.detach(), var.detach(), values=x.numel() // x.shape[1])
        else:
            mean, var = self.running_mean, self.running_var
        x_hat = (x - mean.view(self.shape)) / torch.sqrt(var.view(self.shape) + self.eps)
        if self.weight is None or self.bias is None:
            return x_hat
        return self.weight.view(self.shape) * x_hat + self.bias.view(self.shape)

    def _track(self, mean: Tensor, var: Tensor, values: int) -> None:
        self.num_batches_tracked += 1
        share = 1.0 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (var * values / (values - 1) - self.running_var)
