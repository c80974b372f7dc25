"""Getting the files of a data set: the only importer of pooch. No torch here.

A file is written under its name only when its content is known to be right. What a broken connection left stays beside
it as a hidden `.part` and is gone on with. Of several processes that want a data set, one downloads, the others wait.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import pooch
from filelock import FileLock, Timeout

from bnlab import __version__
from bnlab.core.errors import UsageError
from bnlab.files.sources import DamagedError, Source, content, contents, missing, read, roots, unpacked

CONNECT_S, READ_S = 10.0, 30.0
"""How long to wait for a site to answer, and for its next bytes."""
ATTEMPTS = 4
"""Times a broken download is gone on with, at one site."""
CHUNK = 2**13
"""Bytes at a time. What came of the last ones is lost when a connection breaks."""
SLACK = 2**20
"""Bytes by which a packed file may be larger than its content."""

Content = TypeVar("Content")
Report = Callable[[str, int, "int | None"], None]
"""Is called with what is being done, how many bytes are done, and of how many if that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Where the files are now, and how they came there."""

    folder: Path
    how: Literal["present", "copied", "downloaded"]


def fetch(source: Source, report: Report, origin: Path | None = None) -> Fetched:
    """Bring all files of the data set below the first of the roots, from the folder `origin` or from its public sites.
    What is there and sound is left as it is.

    Raises:
        DataError: `origin` does not have them, no site gives them, or what they give is not sound.
        UsageError: they cannot be written.
    """
    root = roots()[0]
    folder = root / source.folders[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{source.name}.lock", source, report):
            with contextlib.suppress(DamagedError):
                contents(source, folder)
                return Fetched(folder=folder, how="present")
            if origin is not None:
                loose = replace(source, folders=(*source.folders, "."))  # also right in the folder itself
                for name, data in read(loose, [origin]).items():
                    _write(folder / name, data)
                return Fetched(folder=folder, how="copied")
            for name, data in _downloaded(source, folder, report):
                _write(folder / name, data)
            return Fetched(folder=folder, how="downloaded")
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        todo = "Set BNLAB_DATA to a folder that can be written to."
        raise UsageError(f"data={source.name}", problem, str(error.filename or folder), todo) from None


@contextlib.contextmanager
def _alone(path: Path, source: Source, report: Report) -> Iterator[None]:
    """This process alone fetches the data set inside the `with`; the lock of one that dies is dropped."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            report(f"waiting for another process that is fetching {source.name}", 0, None)
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.whole")  # one name: this process is alone, and what a killed one left goes
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _downloaded(source: Source, folder: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    """Every file and its content, as they come."""
    if source.archive is not None:
        room = sum(file.size for file in source.files) + SLACK
        found = _from_sites(source, folder / source.archive, room, partial(unpacked, source), report)
        yield from found.items()
        return
    for file in source.files:
        check = partial(content, source, file)
        try:
            yield file.name, check(folder / file.name)
        except DamagedError:
            packed = folder / f"{file.name}.gz"
            yield file.name, _from_sites(source, packed, file.size + SLACK, check, report)


def _from_sites(source: Source, packed: Path, room: int, check: Callable[[Path], Content], report: Report) -> Content:
    """What `check` finds in the packed file of that name, from the first site that has it sound.

    Raises:
        DataError: none has.
    """
    told = []
    for base in source.urls:
        url = f"{base}/{packed.name}"
        part = packed.with_name(f".{packed.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
        try:
            found = _checked(url, part, room, check, report)
            for other in packed.parent.glob(f".{glob.escape(packed.name)}.*.part"):
                other.unlink(missing_ok=True)
            return found
        except DamagedError as error:
            told.append(f"{urlsplit(url).netloc} gave a file that {error.problem}")
        except _SiteError as error:
            told.append(f"{urlsplit(url).netloc} {error}")
    raise missing(source, roots(), why=f"{packed.name} could not be downloaded: {'; '.join(told)}")


def _checked(url: str, part: Path, room: int, check: Callable[[Path], Content], report: Report) -> Content:
    """Download and check. What was gone on with and is not sound may be pieces of two versions: it is done once more
    from its beginning."""
    continued = part.exists()
    try:
        _download(url, part, room, report)
        found = check(part)
    except DamagedError:
        part.unlink()
        if not continued:
            raise
        return _checked(url, part, room, check, report)
    part.unlink()
    return found


class _SiteError(Exception):
    """A site does not give the file; the text goes on after its name."""


def _download(url: str, part: Path, room: int, report: Report) -> None:
    """The whole file at `url` in `part`, gone on with from what is there.

    Raises:
        _SiteError: the site cannot be reached, has no such file, breaks off time and again, or sends too much.
    """
    for _ in range(ATTEMPTS):
        with _Part(part, room, report) as file:
            headers = {"Accept-Encoding": "identity", "User-Agent": f"bnlab/{__version__}"}
            if file.size:
                headers["Range"] = f"bytes={file.size}-"
            get = pooch.HTTPDownloader(
                chunk_size=CHUNK, timeout=(CONNECT_S, READ_S), headers=headers, hooks={"response": file.begin}
            )
            try:
                get(url, file, None)
                return
            except (OSError, ValueError) as error:  # requests' own errors are OSErrors
                if isinstance(error, UsageError):
                    raise
                response = getattr(error, "response", None)
                if response is not None and response.status_code == 416:  # there is nothing after what we have
                    return
                if response is not None:
                    raise _SiteError(f"answers {response.status_code} {response.reason}") from None
                if not file.answered:
                    raise _SiteError(f"cannot be reached ({type(error).__name__})") from None
    raise _SiteError(f"broke off {ATTEMPTS} times")


class _Part:
    """A file as far as it has been downloaded. An empty one is not left behind."""

    def __init__(self, path: Path, room: int, report: Report) -> None:
        self.path, self.room, self.report = path, room, report
        self.name = path.name[1:].rpartition(".")[0].rpartition(".")[0]
        self.answered = False
        self.total: int | None = None

    def __enter__(self) -> _Part:
        self._file = open(self.path, "ab")
        self.size = self.path.stat().st_size
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.size:
            self.path.unlink()

    def begin(self, response: Any, **_: Any) -> None:
        """Look at the head of an answer before its body comes."""
        if response.status_code == 200:  # the whole of it, whatever was asked for
            self._cut(0)
        elif response.status_code == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != self.size:
                self._cut(0)
                raise _SiteError("answers with another part of the file than asked for")
        else:
            return
        self.answered = True
        length = response.headers.get("Content-Length", "")
        self.total = self.size + int(length) if length.isdecimal() else None
        self._refuse_more_than_room(self.total or 0)
        self.report(self.name, self.size, self.total)

    def write(self, chunk: bytes) -> None:
        """Append."""
        self._refuse_more_than_room(self.size + len(chunk))
        try:
            self._file.write(chunk)
            self._file.flush()
        except OSError as error:
            raise UsageError(str(self.path), (error.strerror or str(error)).lower()) from None
        self.size += len(chunk)
        self.report(self.name, self.size, self.total)

    def flush(self) -> None:
        """Done by `write`."""

    def _refuse_more_than_room(self, size: int) -> None:
        if size > self.room:
            self._cut(0)
            raise _SiteError(f"sends more than the {self.room:,} bytes that this file can have")

    def _cut(self, size: int) -> None:
        self._file.truncate(size)
        self.size = size
