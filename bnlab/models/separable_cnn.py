"""Depthwise-separable convolutional net: every convolution in two, a depthwise and a pointwise one.

A depthwise convolution has one filter for each channel and mixes none; the pointwise one, 1x1, mixes them (Howard et
al. 2017, MobileNet, figure 3: a norm and a nonlinearity after each; Chollet 2017, Xception: no nonlinearity in the
middle).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Builder, Net

AtLeastOne = Annotated[int, Ge(1)]


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
    if len(input_shape) != 3:
        remedy = "Use model=mlp, or a data set of images."
        raise UsageError("model", "a separable_cnn needs images (C, H, W)", input_shape, remedy)
    if isinstance(strides, int):
        strides = [strides] * len(channels)
    if len(strides) != len(channels):
        remedy = f"Give one number, or {len(channels)} numbers as in model.channels."
        raise UsageError("model.strides", "not one for each pair of convolutions", strides, remedy)
    builder = Builder(model, norm, normalizable=1 + 2 * len(channels))
    before, *after = (max(1, round(width * wanted)) for wanted in (stem, *channels))
    conv = nn.Conv2d(input_shape[0], before, 3, stride=stem_stride, padding=1, bias=builder.needs_bias())
    builder.hidden("conv", conv, before, dims=2)
    digits = len(str(len(channels)))
    for block, (wanted, stride) in enumerate(zip(after, strides, strict=True), 1):
        name = f"b{block:0{digits}d}"
        depthwise = nn.Conv2d(
            before, before, kernel, stride=stride, padding=kernel // 2, groups=before, bias=builder.needs_bias()
        )
        builder.hidden(f"{name}_dw", depthwise, before, dims=2, acts=middle == "activation")
        builder.hidden(f"{name}_pw", nn.Conv2d(before, wanted, 1, bias=builder.needs_bias()), wanted, dims=2)
        before = wanted
    builder.plain("pool", nn.AdaptiveAvgPool2d(1))
    builder.plain("flatten", nn.Flatten())
    builder.head(nn.Linear(before, outputs, bias=model.bias is not False))
    return builder.build(seed)
