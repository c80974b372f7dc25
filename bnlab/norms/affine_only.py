"""The learned part of batch norm without its statistics."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm


@NORMS.register("affine_only", title="scale and shift only")
class AffineOnly(ChannelNorm):
    """y = gamma * x + beta per channel, from gamma = 1 and beta = 0: the control for what the parameters of batch norm
    do without its statistics."""

    stacks = True

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__(channels, dims, gamma=True, beta=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x)
