"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019), torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bnlab.core.registry import OPTIMIZERS
from bnlab.optim.base import Beta, Eps, WeightDecay


@OPTIMIZERS.register("adamw", title="AdamW")
def adamw(
    params: Iterable[torch.nn.Parameter], lr: float, *, beta1: Beta, beta2: Beta, eps: Eps, weight_decay: WeightDecay
) -> torch.optim.Optimizer:
    """Steps of size about lr per weight, from running averages of the gradient and of its square."""
    return torch.optim.AdamW(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
