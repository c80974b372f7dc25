"""What an executor is: it runs a function on items, wherever that may be, and yields what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

    @property
    def apart(self) -> bool:
        """Whether every item runs in a process of its own."""
        ...

    @property
    def workers(self) -> int:
        """How many items run at once."""
        ...

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        begun: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """`items` are taken one by one, when a worker is free; `begun` is called with each. `stopped` is called several
        times a second: once it is true no item is begun, and running ones are signalled to stop and have their
        outcomes as usual. Closing the iterator early does the same, without outcomes."""
        ...


class Inline:
    """An executor (base.py). An item that kills its process kills the sweep."""

    apart, workers = False, 1

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        begun: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """See `Executor`; the function itself must ask whether it should stop."""
        waiting = iter(items)
        while not stopped():
            try:
                item = next(waiting)
            except StopIteration:
                return
            begun(item)
            try:
                value = function(item)
            except Exception as error:
                yield Outcome(item=item, error=f"{type(error).__name__}: {error}")
            else:
                yield Outcome(item=item, value=value)
