"""Deep linear net: square linear layers and no nonlinearity (Santurkar et al. 2018, section 3.2)."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Builder, Net


@MODELS.register("deep_linear")
def deep_linear(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: Annotated[int, Ge(2)],
    width: Annotated[int, Ge(1)],
) -> Net:
    """`depth` linear layers in all, `width` between them; all but the last may carry a norm."""
    if model.activation != "linear":
        raise UsageError(
            "model.activation", "a deep linear net has none", model.activation, "Use linear, or model=mlp."
        )
    builder = Builder(model, norm, normalizable=depth - 1)
    if len(input_shape) > 1:
        builder.plain("flatten", nn.Flatten())
    features = math.prod(input_shape)
    for _ in range(depth - 1):
        builder.hidden("fc", nn.Linear(features, width, bias=builder.needs_bias()), width, dims=0)
        features = width
    builder.head(nn.Linear(features, outputs, bias=model.bias is not False))
    return builder.build(seed)
