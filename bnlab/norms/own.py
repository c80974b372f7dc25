"""The norms of a user's own module, as they are."""

from __future__ import annotations

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS


@NORMS.register("own", title="its own norms")
def own(channels: int, dims: int) -> None:
    """Nothing is exchanged (net/adopt.py).

    Raises:
        UsageError: a model of bnlab's own, which has no norms but those of the run.
    """
    raise UsageError("norm", "only a module of your own has norms of its own", "own", "Use norm=batch, or norm=none.")
