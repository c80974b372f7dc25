"""The content of run folders as one archive: what goes to a machine that shares no disk with this one, and comes back.

An archive from elsewhere may have anything in it. `unpack` accepts regular files with the names of a run's files, and
nothing else; nothing is written before all of it is accepted.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from bnlab.core.errors import UsageError, refuse_path
from bnlab.record.folder import RunFolder, write_atomically

ORDER = ("spec.yaml", "plugins", "log.txt", "journal", "answers", "checkpoint", "events", "status.json")
"""The files of a run by how their names begin, in the order of writing. A process that is killed in between leaves a
run that resumes: the journal is at least as long as its checkpoint counts, and the status comes last."""

LIMIT = 8 * 2**30
"""The most bytes that the files of an archive may have."""

Content = dict[str, bytes]
"""The files of several folders by `index/name`, such as `0/journal.jsonl`."""


def content(folders: Sequence[Path]) -> Content:
    """The files that are there, less locks and files that are not a run's."""
    found = {}
    for index, folder in enumerate(folders):
        for file in sorted(folder.rglob("*")):
            name = f"{index}/{file.relative_to(folder).as_posix()}"
            if _is_a_runs(PurePosixPath(name)) and file.is_file() and not file.is_symlink():
                found[name] = file.read_bytes()
    return found


def pack(files: Mapping[str, bytes]) -> bytes:
    """An archive of these, not compressed: one can have no more bytes than it shows."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data: bytes, folders: int) -> Content:
    """The files of an archive for so many folders.

    Raises:
        UsageError: it has something else than regular files with the names of a run's files, too much, or is damaged.
    """
    found, size = Content(), 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                accept([member.name], folders)
                size += member.size
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                    raise UsageError("archive", "not a regular file", member.name)
                if member.name in found or size > LIMIT:
                    raise UsageError("archive", "the same file twice, or too large", member.name)
                file = archive.extractfile(member)
                found[member.name] = file.read() if file else b""
                if len(found[member.name]) < member.size:
                    raise UsageError("archive", "cut off", member.name)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("archive", f"cannot be read: {error}") from None
    return found


def accept(names: Collection[str], folders: int) -> None:
    """Accept `index/name` of a run's file in one of so many folders.

    Raises:
        UsageError: another name: absolute, with `..`, or not a run's.
    """
    for name in names:
        index, *parts = name.split("/")
        refuse_path("archive", *parts)
        if not (index.isdecimal() and index.isascii() and int(index) < folders and _is_a_runs(PurePosixPath(name))):
            raise UsageError("archive", "not the name of a run's file", name)


def put(files: Mapping[str, bytes], gone: Collection[str], folders: Mapping[int, Path]) -> None:
    """Write the files into the folders of these indices, and remove those that are gone. An answer is added to the
    others that are there, which other processes may have written meanwhile."""
    for name in sorted((*files, *gone), key=_turn):
        index, _, place = name.partition("/")
        if (folder := folders.get(int(index))) is None:
            continue
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if name not in files:
            file.unlink(missing_ok=True)
        elif place == "answers.jsonl":
            there = set(file.read_bytes().splitlines()) if file.is_file() else set()
            for line in files[name].splitlines():
                with contextlib.suppress(ValueError):  # of a torn line
                    if line not in there:
                        RunFolder(folder).add_answer(json.loads(line))
        else:
            write_atomically(file, files[name])


def _is_a_runs(name: PurePosixPath) -> bool:
    """Whether `index/name` has the name of a run's file."""
    kind = name.parts[1] if len(name.parts) > 1 else ""
    return kind == "plugins" if len(name.parts) > 2 else kind.startswith(ORDER) and kind != "plugins"


def _turn(name: str) -> tuple[int, str]:
    kind = name.split("/")[1]
    return next(turn for turn, start in enumerate(ORDER) if kind.startswith(start)), name
