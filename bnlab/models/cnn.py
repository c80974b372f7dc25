"""Plain convolutional net: convolutions, then a pooling head."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Builder, Net

AtLeastOne = Annotated[int, Ge(1)]


@MODELS.register("cnn")
def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    channels: Annotated[list[AtLeastOne], MinLen(1)],
    strides: AtLeastOne | list[AtLeastOne],
    kernel: AtLeastOne,
    head: Literal["average", "max", "flatten"],
) -> Net:
    """x [B, C, H, W] through one convolution for each entry of `channels` (padded by kernel // 2), then global average
    or max pooling, or all positions flattened, and a linear head [B, outputs]."""
    if len(input_shape) != 3:
        raise UsageError(
            "model", "a cnn needs images (C, H, W)", input_shape, "Use model=mlp, or a data set of images."
        )
    if isinstance(strides, int):
        strides = [strides] * len(channels)
    if len(strides) != len(channels):
        remedy = f"Give one number, or {len(channels)} numbers as in model.channels."
        raise UsageError("model.strides", "not one for each convolution", strides, remedy)
    builder = Builder(model, norm, normalizable=len(channels))
    before, height, width = input_shape
    for after, stride in zip(channels, strides, strict=True):
        conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=builder.needs_bias())
        builder.hidden("conv", conv, after, dims=2)
        before = after
        height, width = ((size + 2 * (kernel // 2) - kernel) // stride + 1 for size in (height, width))
    if head == "flatten":
        features = before * height * width
    else:
        builder.plain("pool", nn.AdaptiveAvgPool2d(1) if head == "average" else nn.AdaptiveMaxPool2d(1))
        features = before
    builder.plain("flatten", nn.Flatten())
    builder.head(nn.Linear(features, outputs, bias=model.bias is not False))
    return builder.build(seed)
