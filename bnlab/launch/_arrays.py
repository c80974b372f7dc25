"""Arrays of jobs on SLURM, by their folders: what has become of their items, and which jobs are left.

    .slurm/NAME-TOKEN/    in the folder of the study, on the shared disk; also the name of the array in SLURM
        3.json            slice 3: its items as text (base.to_text)
        3.jsonl           what has become of them: a line when one begins, a line with its outcome
        *_3_0_log.err     what the job prints (submitit)

The files say what is done. SLURM is only asked which jobs are left, so that no accounting is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnlab.core.errors import UsageError
from bnlab.launch.base import Outcome, from_text

TICK_S = 0.1
STOP_S = 90.0
"""How long to wait for jobs that were cancelled: SLURM kills them after its KillWait."""
SUBMITTING_S = 300.0
"""A folder without jobs that is younger may be that of a command that is submitting them."""
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT", "gone"}


@dataclass(slots=True)
class Slice:
    """The items of one job, by their folders, and what its file says about them so far."""

    file: Path
    folders: Sequence[Sequence[str]]
    begun: set[int] = field(default_factory=set)
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)
    times_gone: int = 0
    _size: int = 0

    def news(self) -> list[dict[str, Any]]:
        """What its file says since the last call. A line that a killed job left unfinished is skipped."""
        try:
            with open(self.file.with_suffix(".jsonl"), "rb") as file:
                file.seek(self._size)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._size += len(whole) + len(end)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        for one in found:
            if "error" in one:
                self.outcomes[one["item"]] = one
            self.begun.add(one["item"])
        return found

    @property
    def left(self) -> list[int]:
        """Items without an outcome."""
        return [item for item in range(len(self.folders)) if item not in self.outcomes]

    def parcels(self) -> list[Any]:
        """The function of the slice, then its items."""
        pairs = [from_text(text) for text in json.loads(self.file.read_text())["items"]]
        return [pairs[0][0], *(parcel for _, parcel in pairs)]


class Array:
    """An array of jobs, by its folder."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, ValueError, KeyError or TypeError for a folder that is not one of an array."""
        self.folder = folder
        trees = {file: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        if not trees:
            raise ValueError("no slices")
        self.functions = {tree["function"] for tree in trees.values()}
        self.slices = {int(file.stem): Slice(file, tree["folders"]) for file, tree in trees.items()}
        self.items: dict[int, list[Any]] = {}
        self.lost = False

    @property
    def open(self) -> list[int]:
        """The slices that have items without an outcome."""
        return [index for index, one in self.slices.items() if one.left]

    def read(self) -> None:
        """Pass over what the jobs have said so far."""
        for one in self.slices.values():
            one.news()

    def folders(self, slices: Iterable[int] | None = None) -> set[str]:
        """The run folders of items without an outcome, of all slices or of these."""
        some = [one for index, one in self.slices.items() if slices is None or index in slices]
        return {place for one in some for item in one.left for place in one.folders[item]}

    def states(self) -> dict[int, str] | None:
        """The state of each of its jobs that SLURM remembers; None where SLURM does not answer."""
        found = asked("squeue", "--noheader", "--array", "--states=all", f"--name={self.folder.name}", "--format=%K|%T")
        return None if found is None else parsed(found)

    def cancel(self) -> None:
        asked("scancel", f"--name={self.folder.name}")

    def look(self, on_start: Callable[[Any], None]) -> Iterator[Outcome[Any]]:
        """The outcomes since the last look."""
        for index in self.open:
            one, begun = self.slices[index], set(self.slices[index].begun)
            for line in one.news():
                item = self._item(index, line["item"])
                if line["item"] not in begun:
                    begun.add(line["item"])
                    on_start(item)
                if "error" in line:
                    yield Outcome(item=item, value=line["value"], error=line["error"])

    def gone(self, states: Mapping[int, str]) -> Iterator[Outcome[Any]]:
        """The items of jobs that have ended without an outcome of theirs, when SLURM has said so twice: what they wrote
        may arrive a little later."""
        for index in self.open:
            one, state = self.slices[index], states.get(index, "gone")
            one.times_gone = one.times_gone + 1 if state in ENDED else 0
            if one.times_gone < 2:
                continue
            self.lost = True
            for item in one.left:
                one.outcomes[item] = {}
                yield Outcome(item=self._item(index, item), error=self._end(index, state), whole=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # if it was the last

    def _item(self, index: int, item: int) -> Any:
        if index not in self.items:
            self.items[index] = self.slices[index].parcels()[1:]
        return self.items[index][item]

    def _end(self, index: int, state: str) -> str:
        """How a job ended, and the last line that it printed; what `srun` adds at the end says less."""
        files = [*self.folder.glob(f"*_{index}_0_log.err" if len(self.slices) > 1 else "*_0_log.err")]
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("srun: ")] or lines
        end = f"its job ended as {state}" if state != "gone" else "its job is gone"
        place = min(map(str, (files[0], os.path.relpath(files[0]))), key=len) if files else ""
        return f"{end}: {lines[-1].strip()[:200]} ({place})" if lines else end


def collected(
    arrays: Iterable[Array], on_start: Callable[[Any], None], stopped: Callable[[], bool]
) -> Iterator[Outcome[Any]]:
    """The outcomes of arrays. The more time has passed without news, the more rarely it looks at the disk, and asks
    SLURM. Once stopped, it cancels the jobs, and waits until they have saved their checkpoints."""
    waiting = list(arrays)
    start = news = time.monotonic()
    looked = asked_at = start
    stopping: float | None = None
    while waiting:
        now = time.monotonic()
        if stopping is None and stopped():
            stopping = now
            for array in waiting:
                array.cancel()
        if stopping is not None and now - stopping > STOP_S:
            return
        asks = now - asked_at >= (1.0 if stopping is not None else min(60.0, max(2.0, (now - start) / 20)))
        if asks or now - looked >= min(10.0, max(0.5, (now - news) / 20)):
            for array in waiting:
                states = array.states() if asks else None  # before the look: what has ended has written everything
                for outcome in array.look(on_start):
                    news = now
                    yield outcome
                for outcome in array.gone(states) if states is not None else ():
                    if stopping is None:
                        yield outcome
            waiting = [array for array in waiting if array.open and array.folder.is_dir()]
            looked = time.monotonic()
            asked_at = looked if asks else asked_at
        time.sleep(TICK_S)


def left_below(place: Path) -> list[Array]:
    """The arrays of a `.slurm` folder that have jobs left, and outcomes to wait for. Folders of others are removed."""
    arrays = []
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        try:
            array = Array(folder)
            young = time.time() - folder.stat().st_mtime < SUBMITTING_S and not (folder / "submitted").exists()
        except (OSError, ValueError, KeyError, TypeError):  # not an array, or another command removes it
            continue
        states = array.states()
        if states is None:
            raise UsageError("launch", "SLURM does not answer, and jobs of an earlier command may run", str(folder))
        array.read()
        if set(states.values()) - ENDED and array.open:
            arrays.append(array)
        elif not young and not set(states.values()) - ENDED:
            array.remove()
    return arrays


def held_below(root: Path) -> set[str]:
    """The run folders, absolute, that jobs of the studies at or below `root` still have."""
    held: set[str] = set()
    for place in (root / ".slurm", *root.glob("*/.slurm")):
        for folder in place.iterdir() if place.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                array = Array(folder)
                array.read()
                held |= array.folders([index for index, state in (array.states() or {}).items() if state not in ENDED])
    return held


def asked(*command: str) -> str | None:
    """What a command of SLURM's prints; None where it fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def parsed(text: str) -> dict[int, str]:
    """States by index in the array; a job that is no array has the index 0.

    >>> parsed("0|RUNNING\\n3|PENDING\\n"), parsed("N/A|COMPLETED\\n")
    ({0: 'RUNNING', 3: 'PENDING'}, {0: 'COMPLETED'})
    """
    pairs = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 1]
    return {int(index) if index.isdigit() else 0: state for index, state in pairs}
