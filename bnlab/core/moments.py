"""Mean and variance per channel of values that come batch by batch. Legend: B batch, C channels, H W space."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Of all values added so far, per channel, each [C] and in float64; as if they had come at once, but for rounding:
    batches of any size are merged by the formula of Chan, Golub & LeVeque 1979, which subtracts no large numbers.

    >>> pooled = Moments()
    >>> for x in ([[0.0], [2.0]], [[7.0]]):
    ...     pooled.add(torch.tensor(x))
    >>> pooled.mean.tolist(), pooled.unbiased.tolist()
    ([3.0], [13.0])
    """

    def __init__(self) -> None:
        self.count = 0
        """Values of a channel."""
        self.mean = self._squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """The values x [B, C] or [B, C, H, W]."""
        over = [axis for axis in range(x.ndim) if axis != 1]
        wide = x.detach().to(x.dtype if x.device.type == "mps" else torch.float64)
        count, mean = x.numel() // x.shape[1], wide.mean(dim=over, keepdim=True)
        squares = (wide - mean).square().sum(dim=over)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean.flatten(), squares
            return
        total = self.count + count
        apart = mean.flatten() - self.mean
        self.mean = self.mean + apart * (count / total)
        self._squares = self._squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def biased(self) -> Tensor:
        """The mean square distance from the mean."""
        return self._squares / self.count

    @property
    def unbiased(self) -> Tensor:
        """The variance with n - 1 in place of n; NaN of a single value."""
        return self._squares / (self.count - 1) if self.count > 1 else torch.full_like(self._squares, torch.nan)
