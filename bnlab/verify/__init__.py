"""`bnlab verify`: identities that batch normalization fulfils, on this machine, and the contracts of entries."""

from bnlab.verify.equations import Identity, identities

__all__ = ["Identity", "identities"]
