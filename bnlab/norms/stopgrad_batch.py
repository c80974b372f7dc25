"""Batch norm whose gradient treats the statistics as constants."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import BatchMomentsNorm


@NORMS.register(
    "stopgrad_batch",
    title="batch norm, gradient stopped",
    traits={"batch_statistics", "cancels_bias", "stops_gradient"},
)
class StopgradBatch(BatchMomentsNorm):
    """The values of batch norm, with dy/dx = gamma / sqrt(var + eps): the two terms of its gradient that come from mean
    and var are left out. Ioffe & Szegedy 2015, section 2, describe the failure: a bias before such a norm grows without
    bound while the loss stays constant. (Its values do not depend on that bias; `model.bias: auto` therefore leaves it
    out, and `true` shows the effect.)"""

    stacks = True

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = (found.detach() for found in self.moments(x))
            self.track_moments(x, mean, var)
        return self.affine((x - self.wide(mean)) / torch.sqrt(self.wide(var) + self.eps))
