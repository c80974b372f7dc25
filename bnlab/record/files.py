"""The small files of a run: what readers rely on in them, checked once, where they are read; and errors of the disk."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnlab.core.errors import UsageError
from bnlab.core.typed import check_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What readers rely on in a line of answers.jsonl."""

    metrics: Mapping[str, float | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusShape(AnswerShape):
    """What readers rely on in status.json."""

    status: Literal["running", "finished", "diverged", "failed", "interrupted"]
    step: int | None = None
    steps: int | None = None
    timing: Mapping[str, float | None] | None = None
    parameters: int | None = None
    dead: bool | None = None
    error: str | None = None
    diverged: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    name: str | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Provenance:
    plugins: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    axes: tuple[str, ...] | None = None
    titles: Mapping[str, str] | None = None
    claims: Mapping[str, str] | None = None
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecShape:
    """What readers rely on in spec.yaml."""

    name: str | None = None
    seed: int | None = None
    steps: int | None = None
    plugins: tuple[str, ...] = ()
    model: _Named = _Named()
    norm: _Named = _Named()
    data: _Named = _Named()
    optim: _Named = _Named()
    provenance: _Provenance | None = None


def read_tree(file: Path, read: Callable[[bytes], Any], shape: type) -> dict[str, Any]:
    """The keys and values in a file; empty if there is no such file.

    Raises:
        ValueError: in one line, why it cannot be read, or which key is wrong.
    """
    try:
        tree = read(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from None
    if not isinstance(tree, dict):
        raise ValueError("it is empty" if tree is None else f"has {type(tree).__name__} in place of keys")
    try:
        check_tree(shape, tree)
    except ValueError as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from None
    return tree


class DiskError(UsageError):
    """The run's folder cannot be written: the disk is full, the folder was removed, a permission is gone, ..."""

    def __init__(self, path: Path, error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError) and not path.is_dir()
        why = "was removed" if gone else f"cannot be written: {(error.strerror or str(error)).lower()}"
        super().__init__(str(path), why, remedy="When that is mended, the same line resumes the run.")

    @staticmethod
    def is_of(path: Path, error: BaseException) -> bool:
        """Whether an error is the folder's, not that of a file which a plugin or a data set reads."""
        if not isinstance(error, OSError) or isinstance(error, NotADirectoryError):  # the last: a mistake in its path
            return False
        own = error.filename and Path(str(error.filename)).absolute().is_relative_to(path.absolute())
        return bool(own) or error.errno in DISK


DISK = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ESTALE") if hasattr(errno, name)
}


def sweep_up(folder: Path, *, older_s: float | None = None) -> None:
    """Remove the parts that killed processes have left at or below a folder: those that are so old, or, by the owner,
    all."""
    for part in folder.rglob(".*") if older_s is None else folder.glob(".*"):
        with contextlib.suppress(OSError):
            left = re.fullmatch(r"\..+\.\d+|\.board\.part", part.name)
            if left and (older_s is None or time.time() - part.lstat().st_mtime > older_s):
                part.unlink()
