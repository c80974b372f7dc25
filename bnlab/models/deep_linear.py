"""Deep linear net: square linear layers and no nonlinearity (Santurkar et al. 2018, section 3.2)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import AtLeastOne, Builder, Net


@MODELS.register("deep_linear")
def deep_linear(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: Annotated[int, Ge(2)],
    width: AtLeastOne,
) -> Net:
    """`depth` linear layers in all, `width` between them; all but the last may carry a norm."""
    if model.activation != "linear":
        remedy = "Use linear, or model=mlp."
        raise UsageError("model.activation", "a deep linear net has none", model.activation, remedy)
    builder = Builder(model, norm, normalizable=depth - 1)
    features = builder.dense(builder.flatten(input_shape), [width] * (depth - 1))
    return builder.with_head(features, outputs, seed)
