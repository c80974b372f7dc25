"""Multilayer perceptron: hidden fully connected layers and a linear head."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import AtLeastOne, Builder, Net


@MODELS.register("mlp")
def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: AtLeastOne | None,
    width: AtLeastOne | Annotated[list[AtLeastOne], MinLen(1)],
) -> Net:
    """x [B, *input_shape] is flattened, then `depth` hidden layers of `width` units, or one of each width in a list
    (then `depth: null`), then the head [B, outputs]."""
    if isinstance(width, int):
        if depth is None:
            raise UsageError("model.depth", "missing", remedy="Give a depth, or a list of widths.")
        width = [width] * depth
    elif depth not in (None, len(width)):
        problem = f"does not agree with the {len(width)} widths in model.width"
        raise UsageError("model.depth", problem, depth, "Set model.depth=null.")
    builder = Builder(model, norm, normalizable=len(width))
    return builder.with_head(builder.dense(builder.flatten(input_shape), width), outputs, seed)
