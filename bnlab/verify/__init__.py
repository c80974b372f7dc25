"""`bnlab verify`: the identities of batch normalization, checked on this machine, and the contracts of entries."""

from bnlab.verify.checks import Identity
from bnlab.verify.equations import identities

__all__ = ["Identity", "identities"]
