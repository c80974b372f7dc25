"""Multilayer perceptron: hidden fully connected layers and a linear head."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, MinLen
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Builder, Net

Width = Annotated[int, Ge(1)]


@MODELS.register("mlp")
def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: Annotated[int, Ge(1)] | None,
    width: Width | Annotated[list[Width], MinLen(1)],
) -> Net:
    """x [B, *input_shape] is flattened, then `depth` hidden layers of `width` units, or one of each width in a list
    (then `depth: null`), then the head [B, outputs]."""
    if isinstance(width, int):
        if depth is None:
            raise UsageError("model.depth", "missing", remedy="Give a depth, or a list of widths.")
        width = [width] * depth
    elif depth not in (None, len(width)):
        raise UsageError(
            "model.depth", f"does not agree with the {len(width)} widths in model.width", depth, "Set model.depth=null."
        )
    builder = Builder(model, norm, normalizable=len(width))
    if len(input_shape) > 1:
        builder.plain("flatten", nn.Flatten())
    features = math.prod(input_shape)
    for units in width:
        builder.hidden("fc", nn.Linear(features, units, bias=builder.needs_bias()), units, dims=0)
        features = units
    builder.head(nn.Linear(features, outputs, bias=model.bias is not False))
    return builder.build(seed)
