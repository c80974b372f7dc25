"""In this process, one after the other: breakpoints work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bnlab.sweep.base import Item, Outcome


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
