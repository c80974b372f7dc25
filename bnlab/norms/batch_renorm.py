"""Batch renormalization (Ioffe 2017, algorithm 1)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm, Eps, Factor, Width


@NORMS.register("batch_renorm", title="batch renorm", traits={"batch_statistics", "stops_gradient"})
class BatchRenorm(ChannelNorm):
    """Batch norm corrected to the running mean mu and the running standard deviation sigma:

        x_hat = (x - mean) / sd * r + d
        r = clip(sd / sigma, 1 / r_max, r_max)        d = clip((mean - mu) / sigma, -d_max, d_max)

    with the batch's mean and sd = sqrt(var + eps). r and d are constants to the gradient; mu and sigma are those of
    before this batch, and move towards mean and sd by `momentum`. Where nothing is clipped, x_hat = (x - mu) / sigma,
    which is also what evaluation computes: the two agree. With `ramp_steps: n`, the bounds widen linearly over
    the first n steps, from r_max = 1 and d_max = 0, which is batch norm, to the given ones; 0: they hold from the
    first step. A bias before it has an effect, through d."""

    stacks = True

    running_mean: Tensor
    running_sd: Tensor

    def __init__(
        self,
        channels: int,
        dims: int,
        *,
        eps: Eps,
        momentum: Annotated[float, Ge(0), Le(1)],
        r_max: Factor,
        d_max: Width,
        ramp_steps: Annotated[int, Ge(0)],
        affine: bool,
    ) -> None:
        running = {"mean": 0.0, "sd": 1.0}
        super().__init__(channels, dims, gamma=affine, beta=affine, momentum=momentum, running=running)
        self.eps, self.r_max, self.d_max, self.ramp_steps = eps, r_max, d_max, ramp_steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.affine((x - self.wide(self.running_mean)) / self.wide(self.running_sd))
        mean, var = self.moments(x)
        sd = torch.sqrt(var + self.eps)
        r_max, d_max = self._bounds(x)
        r = (sd / self.running_sd).clamp(1 / r_max, r_max).detach()
        d = ((mean - self.running_mean) / self.running_sd).clamp(-d_max, d_max).detach()
        self.track(mean=mean, sd=sd)
        return self.affine((x - self.wide(mean)) / self.wide(sd) * self.wide(r) + self.wide(d))

    def statistics_in_use(self) -> tuple[Tensor, Tensor]:
        """See `base.statistics_in_use`. The running standard deviation has eps in it."""
        return self.running_mean, (self.running_sd.square() - self.eps).clamp(min=0)

    def use_statistics(self, mean: Tensor, var: Tensor) -> None:
        """See `base.population_of`."""
        self.running_mean.copy_(mean)
        self.running_sd.copy_((var + self.eps).sqrt())

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r_max and d_max at this step, scalars that stay on the device."""
        ramped = (self.num_batches_tracked.to(x.dtype) / max(1, self.ramp_steps)).clamp(max=1)
        if self.ramp_steps == 0:
            ramped = torch.ones_like(ramped)
        return 1 + ramped * (self.r_max - 1), ramped * self.d_max
