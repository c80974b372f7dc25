"""Dropout between the layers of a net (Srivastava et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.norms.base import DrawsEachStep


class Dropout(DrawsEachStep):
    """In training every value is 0 with probability p, else x / (1 - p); in evaluation it is x (Srivastava et al. 2014,
    section 4, with the scale in training in place of use: their section 10)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape, generator=self.draws()) >= self.p
        self.steps += 1
        return x * (kept.to(x) / (1 - self.p))
