"""Dynamic erf in place of a norm (Chen et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.core.registry import NORMS
from bnlab.norms.dyt import Alpha, DynamicTanh


@NORMS.register("derf", title="dynamic erf")
class DynamicErf(DynamicTanh):
    """y = gamma * erf(alpha x + s) + beta, alpha and s one learned number each a layer (Chen et al. 2025, from the
    abstract)."""

    def __init__(self, channels: int, dims: int, *, alpha: Alpha, affine: bool) -> None:
        """`alpha`: its value at the start; s starts at 0."""
        super().__init__(channels, dims, alpha=alpha, affine=affine)
        self.s = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.erf(self.alpha * x + self.s))
