"""Stochastic gradient descent, with momentum, Nesterov's momentum and weight decay; torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bnlab.core.errors import UsageError
from bnlab.core.registry import OPTIMIZERS
from bnlab.optim.base import Beta, WeightDecay


@OPTIMIZERS.register("sgd", title="SGD")
def sgd(
    params: Iterable[torch.nn.Parameter], lr: float, *, momentum: Beta, nesterov: bool, weight_decay: WeightDecay
) -> torch.optim.Optimizer:
    """w <- w - lr * (gradient + weight_decay * w), with heavy-ball or Nesterov momentum."""
    if nesterov and momentum == 0:
        raise UsageError("optim.nesterov", "needs a momentum", nesterov, "Set optim.momentum=0.9, say.")
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
