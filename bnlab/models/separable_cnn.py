"""Depthwise-separable convolutional net: every convolution in two, a depthwise and a pointwise one.

A depthwise convolution has one filter for each channel and mixes none; the pointwise one, 1x1, mixes them (Howard et
al. 2017, MobileNet, figure 3: a norm and a nonlinearity after each; Chollet 2017, Xception: no nonlinearity in the
middle).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Gt, Lt, MinLen
from torch import nn

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import AtLeastOne, Builder, Net, each_stride, image_shape


@MODELS.register("separable_cnn")
def separable_cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    stem: AtLeastOne,
    stem_stride: AtLeastOne,
    channels: Annotated[list[AtLeastOne], MinLen(1)],
    strides: AtLeastOne | list[AtLeastOne],
    kernel: AtLeastOne,
    width: Annotated[float, Gt(0), Lt(math.inf)],
    middle: Literal["activation", "none"],
) -> Net:
    """x [B, C, H, W] through a plain 3x3 convolution of `stem` channels, then a depthwise convolution (padded by kernel
    // 2, with the stride) and a pointwise one for each entry of `channels`, global average pooling and a linear head
    [B, outputs]. All channels times `width`."""
    inputs, *_ = image_shape(input_shape, "separable_cnn")
    strides = each_stride(strides, len(channels), "pair of convolutions")
    builder = Builder(model, norm, normalizable=1 + 2 * len(channels))
    before, *pointwise = (max(1, round(width * wanted)) for wanted in (stem, *channels))
    builder.conv("conv", inputs, before, 3, stem_stride)
    digits = len(str(len(channels)))
    for block, (after, stride) in enumerate(zip(pointwise, strides, strict=True), 1):
        name = f"b{block:0{digits}d}"
        builder.conv(f"{name}_dw", before, before, kernel, stride, groups=before, acts=middle == "activation")
        builder.conv(f"{name}_pw", before, after, 1)
        before = after
    builder.plain("pool", nn.AdaptiveAvgPool2d(1))
    return builder.with_head(builder.flatten((before, 1, 1)), outputs, seed)
