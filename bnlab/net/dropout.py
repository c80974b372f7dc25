"""Dropout between the layers of a net (Srivastava et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnlab.core.seeds import stream


class Dropout(nn.Module):
    """In training every value is 0 with probability p, else x / (1 - p); in evaluation it is x (Srivastava et al. 2014,
    section 4, with the scale in training in place of use: their section 10).

    The mask is a function of the run's seed, the layer's name, and the number of training forwards so far (a buffer):
    the same after a resume, on every device, and in a pass made for measuring.
    """

    steps: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("steps", torch.tensor(0))
        self.bind(0, "")

    def bind(self, seed: int, name: str) -> None:
        """Take the seed of the run and the name of the layer, before the first forward pass."""
        self._seed, self._name = seed, name

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        draws = stream(self._seed, "noise", self._name, int(self.steps))
        kept = torch.rand(x.shape, generator=draws) >= self.p
        self.steps += 1
        return x * (kept.to(x) / (1 - self.p))
