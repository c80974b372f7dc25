"""In this process, one item after the other: breakpoints work, and an item that kills its process kills the sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bnlab.core.errors import UsageError
from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec
from bnlab.launch.base import Item, Outcome


class Inline:
    """See `base.Executor`. The function itself must check whether it should stop."""

    isolated, workers = False, 1

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        on_start: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        waiting = iter(items)
        while not stopped():
            try:
                item = next(waiting)
            except StopIteration:
                return
            on_start(item)
            try:
                value = function(item)
            except Exception as error:
                yield Outcome(item=item, error=f"{type(error).__name__}: {error}")
            else:
                yield Outcome(item=item, value=value)


@EXECUTORS.register("inline")
def inline(spec: RunSpec) -> Inline:
    """Raises UsageError for several workers."""
    if spec.launch.workers not in ("auto", 1):
        raise UsageError(
            "launch.workers", "launch=inline runs one after the other", spec.launch.workers, "Use launch=local."
        )
    return Inline()
