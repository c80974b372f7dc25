"""The folder of a run: its files, its status, and who owns it.

spec.yaml       the whole resolved spec and its provenance; written first
journal.jsonl   the records (journal.py)
status.json     running | finished | diverged | failed | interrupted, the step, the final metrics
checkpoint.pt   what an exact resume needs; until the run has ended, checkpoint.previous.pt is the one before it
events.out.*    the TensorBoard view of the journal (board/)
log.txt         a log for people; a traceback if the run failed
answers.jsonl   loss and accuracy under conditions that a study asks about (run/answer.py), a line each
plugins/        the user's own files that it was made with, numbered as in the spec
owner.json      the process that trains the run, or trained it last, and its heartbeat; `lock` is its lock
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from bnlab.core.conditions import condition_key
from bnlab.core.errors import UsageError
from bnlab.core.registry import Plugin, digest
from bnlab.core.safe import no_link, safe_json, safe_yaml
from bnlab.core.spec import id_of
from bnlab.core.typed import check_tree
from bnlab.record.files import AnswerShape, DiskError, SpecShape, StatusShape, read_tree, sweep_up

HEARTBEAT_S = 10.0
DEAD_AFTER_S = 60.0
ENDED = ("finished", "diverged")
AGAIN = "Type the line that began it again: nothing is lost."


class BusyError(UsageError):
    """Another process is training the run."""


class LostError(BusyError):
    """Another process has taken the run over: this one writes nothing more."""


class BrokenError(UsageError):
    """A file of the run is cut off or damaged, or belongs to another run."""

    def __init__(self, path: Path, problem: str, remedy: str = "Train the run again with --fresh.") -> None:
        super().__init__(str(path), problem, remedy=remedy)
        self.problem = f"{path.name} {problem}"


class NoRunsError(UsageError):
    """There are no runs, or none that has ended."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths and small files of one run."""

    path: Path
    token: str = field(default="", compare=False, repr=False)
    """Of this process as the owner, inside `owned`: what it writes is refused once owner.json has another one."""

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def journal_file(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def journal_bytes(self) -> int:
        """The size of the journal, 0 if there is none."""
        try:
            return self.journal_file.stat().st_size
        except OSError:
            return 0

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def previous_file(self) -> Path:
        return self.path / "checkpoint.previous.pt"

    @property
    def has_checkpoint(self) -> bool:
        return self.checkpoint_file.is_file() or self.previous_file.is_file()

    def write_checkpoint(self, data: bytes) -> None:
        """The one before it stays as the previous one. After a kill between the two renames that is the only one."""

        def keep() -> None:
            self.refuse_others()
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.checkpoint_file, self.previous_file)

        write_atomically(self.checkpoint_file, data, before=keep)

    @property
    def answers_file(self) -> Path:
        return self.path / "answers.jsonl"

    def answers(self) -> dict[str, dict[str, Any]]:
        """The answers that are there, by the canonical text of their conditions. A line that a killed process left
        unfinished is skipped."""
        found = {}
        for line in self.answers_file.read_bytes().splitlines() if self.answers_file.is_file() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                answer = safe_json(line)
                check_tree(AnswerShape, answer)
                found[condition_key(answer)] = answer
        return found

    def add_answer(self, answer: Mapping[str, Any]) -> None:
        """Append a line, in one write: several processes may do so."""
        with open(self.answers_file, "a+b", buffering=0, opener=no_link) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + json.dumps(answer).encode() + b"\n")

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    def status(self) -> dict[str, Any]:
        """The last written status; empty if there is none.

        Raises:
            BrokenError: it cannot be read. The line that began the run finds out again whether it has ended.
        """
        return self._tree(self.status_file, safe_json, StatusShape)

    def begun_since(self, time_s: float) -> bool:
        """Whether a status was written since that time."""
        try:
            return self.status_file.stat().st_mtime >= time_s
        except OSError:
            return False

    def write_status(self, status: Mapping[str, Any]) -> None:
        write_atomically(self.status_file, json.dumps(status, indent=1).encode(), before=self.refuse_others)

    def read_spec(self) -> dict[str, Any]:
        """The spec as it was written, with its `provenance`; empty if there is none.

        Raises:
            BrokenError: it cannot be read, or is another one than that whose id is in the folder's name.
        """
        tree = self._tree(self.spec_file, safe_yaml, SpecShape)
        named = re.fullmatch(r"seed=\d+-([0-9a-f]{10})", self.path.name)
        made_with = (tree.get("provenance") or {}).get("plugins")
        if not tree or not named or (tree.get("plugins") and made_with is None):  # the last: of an earlier version
            return tree
        with contextlib.suppress(KeyError, AttributeError, TypeError):
            if id_of(tree, made_with or ()) == named[1]:
                return tree
        raise BrokenError(self.spec_file, f"was changed: it is not the spec of run {named[1]}", AGAIN)

    def spec(self) -> dict[str, Any]:
        """The same; empty where it cannot be read."""
        with contextlib.suppress(BrokenError):
            return self.read_spec()
        return {}

    def problem(self) -> str | None:
        """Why the run cannot be read, in one line."""
        try:
            self.read_spec()
            self.status()
        except BrokenError as error:
            return str(error)
        return None

    def _tree(self, file: Path, read: Callable[[bytes], Any], shape: type) -> dict[str, Any]:
        try:
            return read_tree(file, read, shape)
        except ValueError as error:
            raise BrokenError(file, f"cannot be read: {error}", AGAIN) from None

    def provenance(self) -> dict[str, Any]:
        """The provenance in spec.yaml; empty if there is none, or the file cannot be read."""
        with contextlib.suppress(BrokenError):
            return self._tree(self.spec_file, safe_yaml, SpecShape).get("provenance") or {}
        return {}

    def write_spec(self, tree: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        text = yaml.dump({**tree, "provenance": dict(provenance)}, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        write_atomically(self.spec_file, text.encode(), before=self.refuse_others)

    def keep(self, plugins: Sequence[Plugin]) -> None:
        """Write a copy of each, as it was read."""
        for index, plugin in enumerate(plugins):
            for place, content in plugin.files.items():
                file = self.path / "plugins" / str(index) / place
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, content)

    def copy(self, index: int, file: str) -> Path:
        """Where the copy of a plugin is."""
        return self.path / "plugins" / str(index) / Path(file).name

    def plugins(self, files: Sequence[str], given: Sequence[str] = ()) -> tuple[str, ...]:
        """Plugins with the content that the run was made with: those `given` of their names, else the files themselves,
        or where one is gone or was edited its copy here. A run of an earlier version kept no copies: of its plugins,
        any content will do.

        Raises:
            UsageError: none has that content.
        """
        found = []
        for index, (file, made_with) in enumerate(zip_longest(files, self.provenance().get("plugins") or ())):
            places = [one for one in given if Path(one).name == Path(file).name]
            places = places or [file, str(self.copy(index, file))]
            contents = {one: digest(one) for one in places}
            found += [one for one, content in contents.items() if made_with in (None, content)][:1]
            if len(found) == index:
                has = ", ".join(f"{one} " + (f"has {of[:8]}" if of else "is not there") for one, of in contents.items())
                problem = f"the run was made with content {made_with[:8]}, but {has}"
                raise UsageError("plugins", problem, str(self.path), "Give --plugin FILE, or train the run again.")
        return tuple(found)

    def log(self, line: str) -> None:
        """Append a line to log.txt, with the time."""
        self.refuse_others()
        with open(self.path / "log.txt", "a", encoding="utf-8", opener=no_link) as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    @contextlib.contextmanager
    def owned(self) -> Iterator[RunFolder]:
        """Inside the `with`, no other process works on the run. The run of a dead owner is taken over: on one machine
        the system releases the lock of a process that ends, however it ends; an owner on another machine counts as dead
        when its heartbeat is more than a minute old. Yields the folder as its owner writes it: should another process
        take the run over from this one, because it was stopped for so long, this one writes nothing more.

        Raises:
            BusyError: another process is training the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise self._busy() from None
        try:
            if self._remote_owner_is_alive():
                raise self._busy()
            mine = replace(self, token=uuid.uuid4().hex)
            mine.write_owner()
            sweep_up(self.path)
            yield mine
            mine.refuse_others()
            (self.path / "owner.json").unlink(missing_ok=True)
        finally:
            lock.release()

    def heartbeat(self) -> None:
        """Record that the owner is alive."""
        self.refuse_others()
        self.write_owner()

    def write_owner(self) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat_s": time.time(), "token": self.token}
        write_atomically(self.path / "owner.json", json.dumps(owner).encode())

    def refuse_others(self) -> None:
        """Before a write of the owner.

        Raises:
            LostError: the run has another owner now, or had one that has ended.
            DiskError: the folder is gone, or may no longer be read.
        """
        if not self.token:
            return
        try:
            owner = safe_json((self.path / "owner.json").read_bytes())
        except ValueError:
            owner = {}
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or not self.path.is_dir():
                raise DiskError(self.path, error) from None
            owner = {}
        if owner.get("token") != self.token:
            raise self._busy(LostError)

    def _owner(self) -> dict[str, Any]:
        try:
            return safe_json((self.path / "owner.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def _remote_owner_is_alive(self) -> bool:
        owner = self._owner()
        return owner.get("host") not in (None, socket.gethostname()) and _beats(owner)

    def alive(self) -> bool:
        """Whether the owner of the run is alive. On its own machine: its process exists and the lock is held, since the
        process id may have been reused. On another machine: its heartbeat is recent."""
        owner = self._owner()
        try:
            if owner["host"] != socket.gethostname():
                return _beats(owner)
            if sys.platform != "win32":  # where 0 is no question: it sends Ctrl-C
                os.kill(int(owner["pid"]), 0)
        except PermissionError:
            return True
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return _is_locked(self.path / "lock")

    def _busy(self, kind: type[BusyError] = BusyError) -> BusyError:
        owner = self._owner()
        who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
        return kind(str(self.path), f"{who} is training this run", remedy="Wait for it, or stop it.")


def _beats(owner: Mapping[str, Any]) -> bool:
    """Whether a heartbeat is recent. One from the future is not: a clock was set back since."""
    heartbeat_s = owner.get("heartbeat_s")
    return isinstance(heartbeat_s, int | float) and abs(time.time() - heartbeat_s) < DEAD_AFTER_S


def _is_locked(lock: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # on Windows, where one asks by taking the lock
        if not lock.is_file():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def write_atomically(path: Path, data: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Replace the file by `data` at once: neither a reader nor a kill ever finds a part of it. `before` is called when
    all is written but its name."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb") as file:  # which follows no link that lies there
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        before()
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


TRAIN_FIRST = "Train one first: bnlab train --config deep_mlp."


def runs_below(root: Path) -> list[RunFolder]:
    """The runs at or below `root`, at least one.

    Raises:
        NoRunsError: there are none, or the directory does not exist.
    """
    if not root.is_dir():
        raise NoRunsError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    if not (found := find_runs(root)):
        raise NoRunsError("RUNS", "no runs in this directory", str(root), TRAIN_FIRST)
    return found


def find_runs(root: Path) -> list[RunFolder]:
    """Every run at or below `root`, in the order of their paths. A folder is a run if it has a spec.yaml."""
    return [RunFolder(file.parent) for file in sorted(root.rglob("spec.yaml"))]


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
