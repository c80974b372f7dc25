"""Ghost batch normalization (Hoffer et al. 2017, algorithm 1)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from bnlab.core.registry import NORMS
from bnlab.norms.base import BatchMomentsNorm, Eps, Momentum


@NORMS.register("ghost_batch", title="ghost batch norm", traits={"batch_statistics", "cancels_bias"})
class GhostBatch(BatchMomentsNorm):
    """Separate batch norm of each ghost, a part of the training batch. A batch of B examples is cut, in its order,
    into floor(B / ghost_size) ghosts (at least one) whose sizes differ by at most one: of `ghost_size` where that
    divides B, never smaller where B is not. The running statistics move once per ghost, one after the other, so
    `num_batches_tracked` counts ghosts. In evaluation it is batch norm."""

    stacks = True

    def __init__(
        self, channels: int, dims: int, *, ghost_size: Annotated[int, Ge(2)], eps: Eps, momentum: Momentum, affine: bool
    ) -> None:
        super().__init__(channels, dims, eps=eps, momentum=momentum, affine=affine)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.batch_norm(x)
        axis = self.over[0]
        ghosts = x.tensor_split(max(1, x.shape[axis] // self.ghost_size), dim=axis)
        return torch.cat([self.batch_norm(ghost) for ghost in ghosts], dim=axis)
