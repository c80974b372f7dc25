"""Adam (Kingma & Ba 2015), torch's own; its weight decay is an L2 term in the gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bnlab.core.registry import OPTIMIZERS
from bnlab.optim.base import Beta, Eps, WeightDecay


@OPTIMIZERS.register("adam", title="Adam")
def adam(
    params: Iterable[torch.nn.Parameter], lr: float, *, beta1: Beta, beta2: Beta, eps: Eps, weight_decay: WeightDecay
) -> torch.optim.Optimizer:
    """Steps of size about lr per weight, from running averages of the gradient and of its square."""
    return torch.optim.Adam(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
