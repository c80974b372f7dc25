"""Mean-only batch normalization (Salimans & Kingma 2016, section 4)."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm, Momentum


@NORMS.register("mean_only_batch", title="mean-only batch norm", traits={"batch_statistics", "cancels_bias"})
class MeanOnlyBatch(ChannelNorm):
    """y = x - mean(x) + beta per channel, gradient through the mean, and no division. In evaluation, the running
    mean replaces the batch's."""

    stacks = True

    running_mean: Tensor

    def __init__(self, channels: int, dims: int, *, momentum: Momentum, affine: bool) -> None:
        super().__init__(channels, dims, gamma=False, beta=affine, momentum=momentum, running={"mean": 0.0})

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        if self.training:
            mean = x.mean(dim=self.over)
            self.track(mean=mean)
        return self.affine(x - self.wide(mean))
