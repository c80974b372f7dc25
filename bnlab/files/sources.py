"""The files of data sets that do not come with bnlab: what they are, where bnlab looks for them, how it downloads them.
The only importer of pooch. No torch here.

A file is known by the sha256 of its *content*: a file that was compressed again or unpacked is the same file. It gets
its name only when its content is known to be right. Of several processes that need a data set, one downloads, the
others wait.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import platformdirs
from filelock import FileLock, Timeout

from bnlab import __version__
from bnlab.core.errors import DataError, UsageError
from bnlab.core.safe import no_link

CONNECT_S, READ_S = 10.0, 30.0  # to wait for a site to answer, and for its next bytes
ATTEMPTS = 4  # at one site, for a download that breaks off
CHUNK = 2**13  # bytes at a time
SLACK = 2**20  # bytes by which a packed file may be larger than its content

Content = TypeVar("Content")
Report = Callable[[str, int, "int | None"], None]  # what is being done, bytes done, of how many if that is known

GZIP = b"\x1f\x8b"
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
"""What the unpackers raise at a file that is cut off or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file: its name, and the length in bytes, sha256 and first bytes of its content."""

    name: str
    size: int
    sha256: str
    magic: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of one data set. `folders`: where they may be below a root, bnlab's own place first. `urls`: public
    sites, each of which has every file as `NAME.gz`, or all in one `archive`. `unread`: what other libraries leave, and
    bnlab does not read."""

    name: str
    files: tuple[File, ...]
    folders: tuple[str, ...]
    urls: tuple[str, ...]
    archive: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """10 hex digits that stand for the content of all files."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()[:10]


LAYOUT = 1  # part of the name of what is kept decoded: raised when its files change their meaning
SOURCES: dict[str, Source] = {}  # by the name of the data set, which enters it when its module is imported


class DamagedError(DataError):
    """A file that exists but does not have the expected content."""

    def __init__(self, source: Source, path: Path, problem: str) -> None:
        self.problem = problem
        remedy = f"Remove it, and get an intact one: bnlab data fetch {source.name}, or ... --from DIR."
        super().__init__(f"data={source.name}", f"{path} {problem}", remedy)


def roots() -> list[Path]:
    """The folders below which data sets are looked for: BNLAB_DATA, the user's cache, and ./data, where tutorials put
    them. What is fetched goes below the first."""
    given = os.environ.get("BNLAB_DATA")
    cache = Path(platformdirs.user_cache_dir("bnlab", appauthor=False)) / "data"
    return [*([Path(given).expanduser()] if given else []), cache, Path("data")]


def decoded(source: Source) -> list[Path]:
    """Where the data set is kept as it is used (`data/_stored.py`), by its content."""
    return [root / "decoded" / f"{source.name}-{source.key}-{LAYOUT}" for root in roots()[:-1]]


def missing(source: Source, among: Sequence[Path], why: str = "") -> DataError:
    """What is missing, where it was looked for and, in the second line, both ways to get it."""
    folders = [root / folder for root in among for folder in source.folders]
    lacking = [file.name for file in source.files if not any(_file(file, folder) for folder in folders)]
    names = ", ".join(lacking or [file.name for file in source.files])
    places = ", ".join(str(folder) for folder in folders)
    packed = f" (or all in {source.archive})" if source.archive else " (plain or .gz)"
    problem = f"no {names}{packed}; looked in {places}" if lacking else f"not all intact in one of {places}: {names}"
    for root in among:
        for name in source.unread:
            if (root / name).exists():
                problem += f"; {root / name} is not read: pickles can run code when they are opened"
    fetch = f"bnlab data fetch {source.name}"
    first = "Type it again where they can be reached" if why else "Download it with"
    remedy = f"{first}: {fetch}. Or take files that you have: {fetch} --from DIR (or set BNLAB_DATA=DIR, "
    remedy += f"where DIR holds {source.folders[0]})."
    return DataError(f"data={source.name}", problem + (f"; {why}" if why else ""), remedy)


def present(source: Source) -> bool:
    """Whether nothing must be fetched: its files exist, intact or not, or it is kept decoded."""
    kept = any((home / "sums.npy").is_file() for home in decoded(source))
    return kept or next(_complete(source, roots()), None) is not None


def read(source: Source, among: Sequence[Path]) -> dict[str, bytes]:
    """The content of every file, from the first folder that has all of them sound.

    Raises:
        DamagedError: they exist, and one does not have the expected content.
        DataError: they were not found.
    """
    damaged: DamagedError | None = None
    for folder in _complete(source, among):
        try:
            return contents(source, folder)
        except DamagedError as error:
            damaged = damaged or error
    raise damaged or missing(source, among)


def _complete(source: Source, among: Sequence[Path]) -> Iterator[Path]:
    """The folders that have every file or the archive."""
    for folder in (root / name for root in among for name in source.folders):
        if _archive(source, folder) or all(_file(file, folder) for file in source.files):
            yield folder


def _file(file: File, folder: Path) -> Path | None:
    paths = (folder / file.name, folder / f"{file.name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _archive(source: Source, folder: Path) -> Path | None:
    path = folder / source.archive if source.archive else None
    return path if path is not None and path.is_file() else None


def contents(source: Source, folder: Path) -> dict[str, bytes]:
    """The content of every file in this folder, from the files themselves or from the archive.

    Raises:
        DamagedError: one is missing, or does not have the expected content.
    """
    paths = {file: _file(file, folder) for file in source.files}
    if None in paths.values() and (archive := _archive(source, folder)):
        return unpacked(source, archive)
    return {file.name: content(source, file, path or folder / file.name) for file, path in paths.items()}


def content(source: Source, file: File, path: Path) -> bytes:
    """The content of one file, plain or in gzip.

    Raises:
        DamagedError: it does not have the expected content.
    """
    with _reading(source, path):
        with open(path, "rb") as plain:
            packed = plain.read(2) == GZIP
        # One byte more than there should be shows that a file is longer, however long it is.
        with gzip.open(path) if packed else open(path, "rb") as stream:
            return _sound(source, file, stream.read(file.size + 1), path)


@contextlib.contextmanager
def _reading(source: Source, path: Path) -> Iterator[None]:
    """What goes wrong in reading or unpacking the file is a DamagedError."""
    try:
        yield
    except BROKEN as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise DamagedError(source, path, f"cannot be unpacked ({why})") from None
    except OSError as error:
        raise DamagedError(source, path, f"cannot be read ({error.strerror or error})") from None


def unpacked(source: Source, path: Path) -> dict[str, bytes]:
    """The content of every file in an archive. Nothing is written by the names in it.

    Raises:
        DamagedError: it is cut off or damaged, lacks a file, has one that is not what it should be, or holds what no
            archive of data needs: links, and paths that lead out of it.
    """
    wanted = {file.name: file for file in source.files}
    room = 2 * sum(file.size for file in source.files)
    found: dict[str, bytes] = {}
    with _reading(source, path), tarfile.open(path) as archive:
        for member in archive:
            inside = PurePosixPath(member.name)
            if inside.is_absolute() or ".." in inside.parts or not (member.isreg() or member.isdir()):
                raise DamagedError(source, path, f"holds {member.name!r}, a link or a path that leads out of it")
            room -= member.size
            if room < 0:
                raise DamagedError(source, path, "holds far more than it should")
            if (file := wanted.get(inside.name)) and (stream := archive.extractfile(member)):
                found[file.name] = _sound(source, file, stream.read(file.size + 1), path / member.name)
    if lacking := sorted(set(wanted) - set(found)):
        raise DamagedError(source, path, f"lacks {', '.join(lacking)}")
    return found


def _sound(source: Source, file: File, data: bytes, path: Path) -> bytes:
    if not data.startswith(file.magic):
        raise DamagedError(source, path, f"is another kind of file: it begins with {data[:8]!r}")
    if len(data) < file.size:
        raise DamagedError(source, path, f"is cut off after {len(data):,} of {file.size:,} bytes")
    if len(data) > file.size:
        raise DamagedError(source, path, f"is longer than its {file.size:,} bytes")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DamagedError(source, path, f"has another content than {source.name}'s: its checksum is wrong")
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Where the files are now, and where they came from."""

    folder: Path
    how: Literal["present", "copied", "downloaded"]


def fetch(source: Source, report: Report, origin: Path | None = None) -> Fetched:
    """Bring all files of the data set below the first of the roots, from the folder `origin` or from its public sites.
    Sound files that are already there are left as they are.

    Raises:
        DataError: `origin` does not have them, or no site has them sound.
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
                loose = replace(source, folders=(*source.folders, "."))  # the files may be in `origin` itself
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
    """Only this process fetches the data set inside the `with`; the system drops the lock of a process that dies."""
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            report(f"waiting for another process that is fetching {source.name}", 0, None)
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")  # one name, so what a killed process left is overwritten
    try:
        with open(part, "wb", opener=no_link) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _downloaded(source: Source, folder: Path, report: Report) -> Iterator[tuple[str, bytes]]:
    """Each file that is not there already, with its content."""
    if source.archive is not None:
        room, check_all = sum(file.size for file in source.files) + SLACK, partial(unpacked, source)
        yield from _from_sites(source, folder / source.archive, room, check_all, report).items()
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
        DataError: no site has it.
    """
    part = packed.with_name(f".{packed.name}.part")
    problems = []
    for base in source.urls:
        url = f"{base}/{packed.name}"
        try:
            _download(url, part, _Progress(packed.name, room, report))
            return check(part)
        except DamagedError as error:
            problems.append(f"{urlsplit(url).netloc} gave a file that {error.problem}")
        except _SiteError as error:
            problems.append(f"{urlsplit(url).netloc} {error}")
        finally:
            part.unlink(missing_ok=True)
    why = "; ".join(problems)
    if " gave a file that " in why:
        remedy = f"Try again later, or take files that you have: bnlab data fetch {source.name} --from DIR."
        raise DataError(f"data={source.name}", f"the download of {packed.name} is damaged: {why}", remedy)
    raise missing(source, roots(), why=f"{packed.name} could not be downloaded: {why}")


class _SiteError(Exception):
    """A site does not have the file; the text follows the site's name."""


def _download(url: str, path: Path, progress: _Progress) -> None:
    """The file at `url` as `path`.

    Raises:
        _SiteError: the site cannot be reached, has no such file, breaks off at every attempt, or sends too much.
    """
    import pooch

    get = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=CHUNK,
        timeout=(CONNECT_S, READ_S),
        headers={"Accept-Encoding": "identity", "User-Agent": f"bnlab/{__version__}"},
    )
    for _ in range(ATTEMPTS):
        try:
            with open(path, "wb", opener=no_link) as file:
                get(url, file, None)
            return
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk; requests' own errors have none
                raise
            response = getattr(error, "response", None)
            if response is not None:
                raise _SiteError(f"answers {response.status_code} {response.reason}") from None
            if progress.total is None:
                raise _SiteError(f"cannot be reached ({type(error).__name__})") from None
    raise _SiteError(f"broke off {ATTEMPTS} times")


class _Progress:
    """What pooch takes for a progress bar: reports the bytes of a file, and refuses more than it can have."""

    def __init__(self, name: str, room: int, report: Report) -> None:
        self.name, self.room, self.report = name, room, report
        self.done = 0
        self._total: int | None = None

    @property
    def total(self) -> int | None:
        """Bytes in all, 0 if the site does not say; None before its first answer."""
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total, self.done = size, 0
        self.update(0)

    def reset(self) -> None:
        self.done = 0

    def update(self, size: int) -> None:
        self.done += size
        if max(self.done, self.total or 0) > self.room + CHUNK:  # pooch counts the last chunk as a whole one
            raise _SiteError(f"sends more than the {self.room:,} bytes that this file can have")
        self.report(self.name, min(self.done, self.total or self.done), self.total or None)

    def close(self) -> None:
        """pooch calls it at the end."""
