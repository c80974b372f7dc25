"""Batch norm with frozen statistics (after Page 2019): the control that rescales as batch norm does, once."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm, Eps


@NORMS.register("frozen_batch", title="frozen batch norm", traits={"batch_statistics"})
class FrozenBatch(ChannelNorm):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, with mean and (biased) var of the first training batch; they are
    constants, no gradient passes through them. With `refresh_every: n`, training steps n, 2n, ... replace them by their
    own batch's *after* they were used, so that all steps but the first are normalized by constants. Evaluation does
    the same; mean 0 and var 1 before any batch was seen. A later change of a bias before it has its effect."""

    stacks = True

    frozen_mean: Tensor
    frozen_var: Tensor
    steps: Tensor

    def __init__(
        self, channels: int, dims: int, *, eps: Eps, refresh_every: Annotated[int, Ge(1)] | None, affine: bool
    ) -> None:
        super().__init__(channels, dims, gamma=affine, beta=affine)
        self.eps, self.refresh_every = eps, refresh_every
        self.register_buffer("frozen_mean", torch.zeros(channels))
        self.register_buffer("frozen_var", torch.ones(channels))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.frozen_mean, self.frozen_var
        if self.training:
            mean, var = self._used(x)
        return self.affine((x - self.wide(mean)) / torch.sqrt(self.wide(var) + self.eps))

    def statistics_in_use(self) -> tuple[Tensor, Tensor]:
        """See `base.statistics_in_use`."""
        return self.frozen_mean, self.frozen_var

    @torch.no_grad()
    def _used(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance for this step; keeps those for the next. With `where`, since reading a counter on a GPU
        makes the host wait for it."""
        found = self.moments(x)
        kept = (self.frozen_mean, self.frozen_var)
        first = self.steps == 0
        used = [torch.where(first, new, old) for new, old in zip(found, kept, strict=True)]
        due = first if self.refresh_every is None else self.steps % self.refresh_every == 0
        for new, old in zip(found, kept, strict=True):
            old.copy_(torch.where(due, new, old))
        self.steps += 1
        return used[0], used[1]
