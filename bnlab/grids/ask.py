"""Asks the trained nets of a sweep what its study asks about, and keeps their answers in the folders of the runs.

What is already answered is not asked again: a sweep that was killed, or a study that asks more than before, goes on
where answers are missing. Answers are no part of a run, and nothing else in its folder changes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bnlab.core.conditions import Condition, of_run, under
from bnlab.core.errors import UsageError
from bnlab.core.registry import READ, Plugin
from bnlab.core.spec import RunSpec, canonical
from bnlab.core.text import leaves
from bnlab.grids.run import Standing
from bnlab.grids.task import received, sent
from bnlab.launch.base import Executor
from bnlab.launch.local import stop_reason
from bnlab.record.folder import RunFolder

SHARE = 16
"""At most so many runs are asked by one process: it says what it has done at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a net has not yet answered: the run's spec under each condition. `plugins` are as the sweep read them."""

    folder: RunFolder
    specs: tuple[RunSpec, ...]
    plugins: Mapping[Path, Plugin]


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions for one process. A parcel (launch/base.py)."""

    each: tuple[Question, ...]
    owns: ClassVar[bool] = False

    @property
    def folders(self) -> list[Path]:
        return [question.folder.path for question in self.each]

    def moved(self, folders: Sequence[Path]) -> Questions:
        pairs = zip(self.each, folders, strict=True)
        return Questions(tuple(dataclasses.replace(one, folder=RunFolder(path)) for one, path in pairs))

    def without(self, folders: Container[Path]) -> Questions | None:
        left = tuple(one for one in self.each if one.folder.path.absolute() not in folders)
        return Questions(left) if left else None

    def tree(self) -> dict[str, Any]:
        each = [{"folder": str(one.folder.path), "specs": [spec.tree() for spec in one.specs]} for one in self.each]
        return {"each": each, "plugins": sent(self.each)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Questions:
        plugins = received(tree["plugins"])
        pairs = [(RunFolder(Path(one["folder"])), one["specs"]) for one in tree["each"]]
        specs = [tuple(map(RunSpec.from_tree, trees)) for _, trees in pairs]
        folders = [folder for folder, _ in pairs]
        return cls(tuple(Question(folder=a, specs=b, plugins=plugins) for a, b in zip(folders, specs, strict=True)))


class Asking:
    """What the finished nets of a sweep are asked: `asked` answers in all, of which `there` exist. `left` are the open
    questions; runs in `lost` have no checkpoint. A run that diverged is not asked."""

    def __init__(self, standings: Iterable[Standing], each: Sequence[Condition]) -> None:
        self.asked = self.there = 0
        self.left: list[Question] = []
        self.lost: list[RunFolder] = []
        for one in standings if each else ():
            if one.state == "finished":
                self._look(one, each)

    def _look(self, one: Standing, each: Sequence[Condition]) -> None:
        tree, known = one.cell.spec.tree(), one.folder.answers()
        wanted = of_run(dict(leaves(tree)), each)
        missing = [condition for key, condition in wanted.items() if key not in known]
        self.asked += len(wanted)
        self.there += len(wanted) - len(missing)
        if missing and not one.folder.has_checkpoint:
            self.lost.append(one.folder)
        elif missing:
            specs = tuple(under(tree, condition) for condition in missing)
            self.left.append(Question(folder=one.folder, specs=specs, plugins=dict(READ)))

    def run(
        self,
        executor: Executor,
        *,
        stopped: Callable[[], str | None] = lambda: None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Ask what is left, until `stopped` returns a reason; a line for each run that could not be asked. `tick` is
        called with how many answers there are, of how many."""
        size = min(SHARE, math.ceil(len(self.left) / executor.workers)) or 1
        groups = [Questions(tuple(self.left[start : start + size])) for start in range(0, len(self.left), size)]
        function = ask_isolated if executor.isolated else functools.partial(ask_group, stopped=stopped)
        failed: list[str] = []
        tick(self.there, self.asked)
        for outcome in executor.run(function, groups, stopped=lambda: stopped() is not None):
            lost = [f"{outcome.item.folders[0]}: {outcome.error}"] if outcome.error else []
            done, errors = outcome.value or (0, lost)
            self.there += done
            failed += errors
            tick(self.there, self.asked)
        return failed


def ask_group(group: Questions, stopped: Callable[[], str | None]) -> tuple[int, list[str]]:
    """Ask these nets one after the other in this process: how many answers they gave, and errors."""
    from bnlab.run.answer import Caches, answers

    caches: Caches = {}
    done, failed = 0, list[str]()
    for question in group.each:
        READ.update(question.plugins)
        try:
            for answer in answers(question.folder, question.specs, caches):
                question.folder.add_answer(answer)
                done += 1
                if stopped() is not None:
                    return done, failed
        except Exception as error:  # of one run, which must not cost the others
            failed.append(str(error) if isinstance(error, UsageError) else f"{question.folder.path}: {error}")
    return done, failed


def ask_isolated(group: Questions) -> tuple[int, list[str]]:
    """The same in a process of its own."""
    return ask_group(group, stop_reason)


def refuse_unanswerable(specs: Iterable[RunSpec], each: Sequence[Condition]) -> None:
    """Refuse conditions under which nets such as these cannot be evaluated, before they are trained.

    Raises:
        UsageError: batches too small for their own statistics, a shift that the data cannot have, ...
    """
    from bnlab.run.answer import Caches, setups

    caches: Caches = {}
    kinds = {}
    for spec in specs if each else ():
        tree = spec.tree()
        kinds[canonical({key: tree[key] for key in ("model", "norm", "data", "loss", "dtype", "plugins")})] = tree
    for tree in kinds.values():
        try:
            for _ in setups([under(tree, found) for found in of_run(dict(leaves(tree)), each).values()], caches):
                pass
        except UsageError as error:
            raise UsageError("ask", str(error).rstrip(".")) from None
