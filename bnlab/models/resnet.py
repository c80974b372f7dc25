"""The residual nets of He et al. 2016a for CIFAR-10 (section 4.2): 6n + 2 layers, blocks of two 3x3 convolutions."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Builder, Net, image_shape

CHANNELS = (16, 32, 64)


@MODELS.register("resnet")
def resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    model: ModelSpec,
    norm: NormSpec,
    seed: int,
    *,
    depth: int,
    width: Annotated[float, Gt(0), Lt(math.inf)],
    shortcut: Literal["A", "B"],
) -> Net:
    """x [B, C, H, W] through a 3x3 convolution, then three stages of n = (`depth` - 2) / 6 blocks, with `width` times
    16, 32 and 64 channels, the second and third stage at half the size of the one before, global average pooling and a
    linear head [B, outputs]. A block: convolution, norm, nonlinearity, convolution, norm, sum with the shortcut,
    nonlinearity. Shortcuts are the identity; where size and channels change, they take every second pixel and put zeros
    into the new channels (`A`), or are a 1x1 convolution of stride 2 with its norm (`B`)."""
    inputs, *_ = image_shape(input_shape, "resnet")
    blocks = (depth - 2) // 6
    if blocks < 1 or depth != 6 * blocks + 2:
        raise UsageError("model.depth", "must be 6n + 2", depth, "Use 8, 14, 20, 32, 44, 56 or 110.")
    builder = Builder(model, norm, normalizable=1 + 6 * blocks + 2 * (shortcut == "B"))
    before, *stages = (max(1, round(width * channels)) for channels in (CHANNELS[0], *CHANNELS))
    builder.conv("conv", inputs, before)
    digits = len(str(blocks))
    for stage, after in enumerate(stages, 1):
        for block in range(1, blocks + 1):
            narrows = block == 1 and stage > 1
            name = f"s{stage}b{block:0{digits}d}"
            with builder.residual(name):
                builder.conv(f"{name}_conv1", before, after, stride=2 if narrows else 1)
                builder.conv(f"{name}_conv2", after, after, residual_sum=True)
                if narrows:
                    with builder.shortcut():
                        if shortcut == "A":
                            builder.plain(f"{name}_short", Subsample(after - before))
                        else:
                            builder.conv(f"{name}_short", before, after, 1, stride=2, acts=False)
            before = after
    builder.plain("pool", nn.AdaptiveAvgPool2d(1))
    return builder.with_head(builder.flatten((before, 1, 1)), outputs, seed)


class Subsample(nn.Module):
    """x [B, C, H, W] -> [B, C + more, ceil(H / 2), ceil(W / 2)]: every second pixel, the new channels 0."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, 0, self.more])
