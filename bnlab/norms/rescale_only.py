"""Batch normalization without the subtraction of the mean (Meterez et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.core.state import Moments
from bnlab.norms.base import ChannelNorm, Eps, Momentum, Population


@NORMS.register("rescale_only", title="rescale-only batch norm", traits={"batch_statistics"})
class RescaleOnly(ChannelNorm):
    """y = gamma * x / sqrt(mean(x^2) + eps) + beta per channel, the mean over the m = B (dense) or B H W (convolution)
    values of the batch, gradient through it; in evaluation, its running average. Meterez et al. 2024 normalize the rows
    of a representation so, without centring them, gamma, beta and eps."""

    stacks = True
    running_square: Tensor

    def __init__(self, channels: int, dims: int, *, eps: Eps, momentum: Momentum, affine: bool) -> None:
        running = {"square": 1.0}
        super().__init__(channels, dims, gamma=affine, beta=affine, momentum=momentum, running=running)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        square = self.running_square
        if self.training:
            square = x.square().mean(dim=self.over)
            self.track(square=square)
        return self.affine(x * (self.wide(square) + self.eps).rsqrt())

    def population(self) -> Population:
        """See `population_of`: the mean square of all values."""
        return _PopulationOfSquares(self)


class _PopulationOfSquares:
    def __init__(self, norm: RescaleOnly) -> None:
        self.norm, self.squares = norm, Moments()

    def add(self, x: Tensor) -> None:
        self.squares.add(x.square())

    def put(self) -> None:
        self.norm.running_square.copy_(self.squares.mean)
