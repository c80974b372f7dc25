"""Training losses and accuracy. Legend: B batch, K outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.core.state import Objective


def objective(loss: str, reduction: str) -> Objective:
    """The loss of that name: `cross_entropy` in nats, or `mse`; over the samples (and, for mse, outputs) `mean` or
    `sum`.

    Class targets [B] become one-hot rows for mse.
    """

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def mse(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.dtype == torch.int64:
            targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        return F.mse_loss(outputs, targets, reduction=reduction)

    return {"cross_entropy": cross_entropy, "mse": mse}[loss]


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many rows of `outputs` [B, K] have their largest entry at the target class [B]: a scalar count."""
    return (outputs.argmax(dim=1) == targets).sum()
