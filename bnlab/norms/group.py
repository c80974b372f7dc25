"""Group normalization (Wu & He 2018), torch's own."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.norms.base import Eps


@NORMS.register("group", title="group norm")
def group(channels: int, dims: int, *, groups: Annotated[int, Ge(1)], eps: Eps, affine: bool) -> nn.Module:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased moments of one example over the channels of one
    group, and over H, W. One group: layer normalization; as many groups as channels: instance normalization.

    Raises:
        UsageError: groups that do not divide the channels of a layer, or that leave a single value each.
    """
    if channels % groups:
        problem = f"does not divide the {channels} channels of a layer"
        raise UsageError("norm.groups", problem, groups, f"Use a divisor of {channels}.")
    if not dims and channels == groups:
        raise UsageError("norm.groups", "leaves one unit a group, always normalized to 0", groups, "Use fewer groups.")
    return nn.GroupNorm(groups, channels, eps=eps, affine=affine)
