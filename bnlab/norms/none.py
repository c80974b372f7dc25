"""No normalization: the arm that every claim is measured against."""

from __future__ import annotations

from bnlab.core.registry import NORMS


@NORMS.register("none", title="no norm")
def none(channels: int, dims: int) -> None:
    """Nothing between the affine map and the nonlinearity."""
