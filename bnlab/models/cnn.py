"""Plain convolutional net: convolutions, then a pooling head."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from torch import nn

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import AtLeastOne, Builder, Net, each_stride, image_shape


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
    before, height, width = image_shape(input_shape, "cnn")
    strides = each_stride(strides, len(channels), "convolution")
    builder = Builder(model, norm, normalizable=len(channels))
    for after, stride in zip(channels, strides, strict=True):
        builder.conv("conv", before, after, kernel, stride)
        before = after
        height, width = ((size + 2 * (kernel // 2) - kernel) // stride + 1 for size in (height, width))
    if head != "flatten":
        builder.plain("pool", nn.AdaptiveAvgPool2d(1) if head == "average" else nn.AdaptiveMaxPool2d(1))
        height = width = 1
    return builder.with_head(builder.flatten((before, height, width)), outputs, seed)
