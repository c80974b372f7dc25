"""Arms of a user's own loop: its model with other norms."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from bnlab.config import load
from bnlab.core.errors import UsageError, cause
from bnlab.loop.described import BASE
from bnlab.loop.twin import KEY
from bnlab.net.adopt import with_other_norms


def with_norm(model: nn.Module, norm: str, x: Tensor, *, seed: int = 0, **options: Any) -> nn.Module:
    """A copy of the model with another norm in the place of each of its own, or `none`; all other weights are equal, so
    that loops over both can be paired.

    >>> layered = bnlab.with_norm(model, "group", x, groups=4)  # doctest: +SKIP

    Args:
        model: with norms of torch.nn as parts.
        norm: as `bnlab list norms` has it; `own` keeps the model's.
        x: [N, ...], a batch that the model takes: by what its norms see, those of the copy are made.
        seed: of norms that draw random numbers.
        options: of the norm, as in configs/norm.

    Raises:
        UsageError: a norm that cannot be exchanged without changing what else the model computes.
    """
    spec = load(BASE, [f"norm={norm}", *(f"norm.{key}={value}" for key, value in options.items())]).norm
    try:
        other = copy.deepcopy(model)
    except Exception as error:
        raise UsageError(KEY, f"cannot be copied: {cause(error)}") from error
    if norm == "own":
        return other
    modes = {part: part.training for part in other.modules()}
    with_other_norms(other, spec, x, KEY, seed)
    for part in other.modules():
        part.training = modes.get(part, model.training)
    return other
