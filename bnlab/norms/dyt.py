"""Dynamic tanh in place of a norm (Zhu et al. 2025)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm


@NORMS.register("dyt", title="dynamic tanh")
class DynamicTanh(ChannelNorm):
    """y = gamma * tanh(alpha x) + beta, alpha one learned number a layer (Zhu et al. 2025, section 4)."""

    in_turn = True

    def __init__(self, channels: int, dims: int, *, alpha: Annotated[float, Gt(0), Lt(math.inf)], affine: bool) -> None:
        """`alpha`: its value at the start."""
        super().__init__(channels, dims, gamma=affine, beta=affine)
        self.alpha = nn.Parameter(torch.full((1,), alpha))

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.alpha * x))
