"""l1 normalization over the batch (Santurkar et al. 2018, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import LpNorm


@NORMS.register("l1", title="L1 batch norm", traits={"batch_statistics"})
class L1(LpNorm):
    """y = gamma * (x - mean(x)) / (mean(|x|) + eps) + beta per channel; see `LpNorm`."""

    def norm(self, x: Tensor) -> Tensor:
        return x.abs().mean(dim=self.over)
