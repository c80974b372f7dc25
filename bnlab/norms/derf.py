"""Dynamic erf in place of a norm (Chen et al. 2025)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.norms.base import ChannelNorm


@NORMS.register("derf", title="dynamic erf")
class DynamicErf(ChannelNorm):
    """y = gamma * erf(alpha x + s) + beta, alpha and s one learned number each a layer (Chen et al. 2025, from the
    abstract)."""

    in_turn = True

    def __init__(self, channels: int, dims: int, *, alpha: Annotated[float, Gt(0), Lt(math.inf)], affine: bool) -> None:
        """`alpha`: its value at the start; s starts at 0."""
        super().__init__(channels, dims, gamma=affine, beta=affine)
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.s = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.erf(self.alpha * x + self.s))
