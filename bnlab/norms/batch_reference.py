"""Batch normalization written from its formula, a reference for torch's. Legend: B batch, C channels, H W space.

In training, with m = B (dense) or B H W (convolution) values per channel:

    mean = sum(x) / m        var = sum((x - mean)^2) / m        x_hat = (x - mean) / sqrt(var + eps)
    y = gamma * x_hat + beta

and the running statistics move by `momentum` towards mean and towards the unbiased variance var * m / (m - 1); with
`momentum: null` they are the plain average over all batches so far. In evaluation, the running statistics replace
mean and var. (Ioffe & Szegedy 2015, algorithms 1 and 2.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import BatchMomentsNorm


@NORMS.register("batch_reference", title="batch norm (reference)", traits={"batch_statistics", "cancels_bias"})
class BatchReference(BatchMomentsNorm):
    """The formula, with the helpers of `ChannelNorm`; gradients by autograd through it."""

    stacks = True

    def forward(self, x: Tensor) -> Tensor:  # [B, C] or [B, C, H, W]
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self.moments(x)  # [C] each, the variance biased
            self.track_moments(x, mean, var)
        return self.affine((x - self.wide(mean)) / torch.sqrt(self.wide(var) + self.eps))
