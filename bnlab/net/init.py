"""Initialization of affine weights, each from its own stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec


@torch.no_grad()
def initialize(affine: Mapping[str, nn.Module], model: ModelSpec, seed: int) -> None:
    """Draw the weight of every named affine module from the `init` stream at its name; biases are 0.

    - `he`: N(0, 2 / fan_in) (He et al. 2015, eq. 10)
    - `glorot`: U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16)
    - `orthogonal`: orthonormal rows or columns (Saxe et al. 2014)
    - `gaussian`: N(0, init_std^2)

    All times `init_scale`.
    """
    for name, module in affine.items():
        weight = module.get_parameter("weight")
        draw(weight, model, stream(seed, "init", f"{name}.weight"))
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.zero_()


def draw(weight: Tensor, model: ModelSpec, generator: torch.Generator) -> None:
    """Fill one weight [out, in] or [out, in, kH, kW] in place."""
    match model.init:
        case "he":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        case "glorot":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "orthogonal":
            nn.init.orthogonal_(weight, generator=generator)
        case "gaussian":
            nn.init.normal_(weight, std=model.init_std, generator=generator)
    weight.mul_(model.init_scale)
