"""`bnlab verify`: identities that batch normalization must fulfil, in numbers, on this machine.

Each check computes both sides of an equation by different means and says how far apart they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnlab.verify import exact, statistical
from bnlab.verify.base import Identity

__all__ = ["Identity", "identities"]


def identities() -> Iterator[Identity]:
    """All checks, one after the other."""
    for dims in (1, 2):
        for steps in (1, 2, 10):
            yield exact.reference_is_torch(dims, steps)
        yield exact.derivative_is_the_limit(dims)
    yield exact.gradients_shrink("mlp")
    yield exact.gradients_shrink("cnn")
    yield exact.weights_are_orthogonal_to_their_gradient()
    yield exact.weights_grow_by_pythagoras()
    yield exact.a_line_begins_at_the_loss()
    yield exact.nothing_precedes_the_first_site()
    for batch in (8, 16, 32, 64, 128):
        yield statistical.gradients_grow("relu", batch)
    yield statistical.gradients_grow("linear", 32)
    yield statistical.gradients_do_not_grow_without_norm()
    for values in (32, 128):
        yield statistical.means_scatter(values)
        yield statistical.deviations_scatter(values)
