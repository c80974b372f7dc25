"""l2 normalization over the batch (Santurkar et al. 2018, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import LpNorm


@NORMS.register("l2", title="L2 batch norm", traits={"batch_statistics"})
class L2(LpNorm):
    """y = gamma * (x - mean(x)) / (sqrt(mean(x^2)) + eps) + beta per channel; see `LpNorm`."""

    def norm(self, x: Tensor) -> Tensor:
        return x.square().mean(dim=self.over).sqrt()
