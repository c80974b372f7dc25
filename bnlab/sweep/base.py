"""What an executor is: it runs a function on items, wherever that may be, and yields what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Item]):
    """What came of one item: a value, or an error in one line when the function raised or its process died."""

    item: Item
    value: Any = None
    error: str | None = None


class Executor(Protocol):
    """`run(function, items)` yields outcomes as they are completed, in whatever order. The function must be one that
    can be imported by name, and running it twice on an item must do no harm. One item's death costs that item alone."""

    def run(self, function: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Outcome[Item]]:
        """Closing the iterator early stops what is at work, gently."""
        ...
