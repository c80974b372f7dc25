"""What a contract's check finds: nothing, or one line that says what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Subject = TypeVar("Subject")


class BrokenError(Exception):
    """What a check raises: the one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Of one check of one entry; `why` says what is wrong, None where nothing is."""

    entry: str
    check: str
    why: str | None

    @property
    def ok(self) -> bool:
        return self.why is None


def findings(entry: str, checks: Mapping[str, Callable[[Subject], None]], subject: Subject) -> Iterator[Finding]:
    """Every check of `checks`, by what it checks, on one subject. An error in the entry's own code is a finding too."""
    for name, check in checks.items():
        try:
            check(subject)
        except Exception as error:
            yield Finding(entry=entry, check=name, why=one_line(error))
        else:
            yield Finding(entry=entry, check=name, why=None)


def one_line(error: BaseException) -> str:
    """What an error says: a check's and a user error's own words, any other with its type; the innermost cause of a
    run that failed."""
    while type(error).__name__ == "RunFailedError" and error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())
    own = isinstance(error, BrokenError) or type(error).__name__ == "UsageError"
    return words if own else f"{type(error).__name__}: {words}".rstrip(": ")


def bits(value: Any) -> Any:
    """Anything made of tensors as plain values, a tensor as its dtype, shape and bytes: NaN is NaN, -0.0 is not 0.0."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that one of the two lacks."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def global_random_states() -> dict[str, Any]:
    """By whose they are: the states of the random generators that a process has one of each, to be compared."""
    name, keys, *rest = np.random.get_state()
    own = (name, np.asarray(keys).tobytes(), *rest)
    return {"torch": bits(torch.get_rng_state()), "numpy": own, "Python": random.getstate()}
