"""VGG: 3x3 convolutions in five stages, halved in between (Simonyan & Zisserman 2015, table 1, nets A, B, D and E)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Gt, Lt
from torch import nn

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import AtLeastOne, Builder, Net, image_shape

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


@MODELS.register("vgg")
def vgg(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: Literal[11, 13, 16, 19],
    width: Annotated[float, Gt(0), Lt(math.inf)],
    head: list[AtLeastOne],
) -> Net:
    """x [B, C, H, W] through `depth` - 3 convolutions of `width` times 64, 128, 256, 512 and 512 channels, each stage
    followed by 2x2 max pooling that rounds up (so any image passes; 32x32 ends as 1x1), flattened; then fully connected
    layers of `head` units, normalized like the others, and the outputs [B, outputs]. The paper has `head` 4096, 4096,
    with dropout, on images of 224x224."""
    before, height, side = image_shape(input_shape, "vgg")
    builder = Builder(model, norm, normalizable=sum(STAGES[depth]) + len(head))
    for stage, (layers, channels) in enumerate(zip(STAGES[depth], CHANNELS, strict=True), 1):
        after = max(1, round(width * channels))
        for layer in range(1, layers + 1):
            builder.conv(f"s{stage}_conv{layer}", before, after)
            before = after
        builder.plain(f"s{stage}_pool", nn.MaxPool2d(2, ceil_mode=True))
        height, side = math.ceil(height / 2), math.ceil(side / 2)
    features = builder.dense(builder.flatten((before, height, side)), head)
    return builder.with_head(features, outputs, seed)
