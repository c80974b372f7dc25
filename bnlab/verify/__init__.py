"""`bnlab verify`: the identities of batch normalization, checked on this machine, and the contracts of entries."""

from collections.abc import Iterator

from bnlab.verify.checks import Identity
from bnlab.verify.equations import up_to_rounding
from bnlab.verify.laws import on_average

__all__ = ["Identity", "identities"]


def identities() -> Iterator[Identity]:
    """Every identity, checked when the iterator reaches it."""
    yield from up_to_rounding()
    yield from on_average()
