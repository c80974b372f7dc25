"""Downloads from a server on this machine that serves well, wrongly, slowly, in part, or not at all."""

from __future__ import annotations

import gzip
import http.server
import io
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.errors import DataError, UsageError
from bnlab.files import sources as fetching
from bnlab.files.sources import SOURCES, Source, contents, fetch

Tiny = Callable[..., dict[str, bytes]]
FIRST = "train-images-idx3-ubyte.gz"


@dataclass
class Site:
    """A server: what it has, how it behaves at each first word of a path, what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # paths
    port: int = 0
    ways: dict[str, str] = field(default_factory=dict)  # a word of a path that now behaves as another
    patience: threading.Event = field(default_factory=threading.Event)  # ends `slow`

    def url(self, way: str) -> str:
        return f"http://127.0.0.1:{self.port}/{way}"

    def requests(self, name: str) -> int:
        return sum(path.endswith(name) for path in self.asked)


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        site = self.site
        word, name = self.path.strip("/").split("/")
        way = site.ways.get(word, word)
        site.asked.append(self.path)
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", site.url("good") + f"/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if way == "missing" or name not in site.files:
            self.send_error(404)
            return
        data = site.files[name]
        if way == "cut":
            data = data[: len(data) // 2]
        if way == "wrong":
            data = data[:-40] + bytes(40)
        self.send_response(200)
        if way == "endless":
            self.end_headers()
            while not site.patience.is_set():
                self.wfile.write(bytes(2**16))
            return
        if way == "huge":
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
            return
        if way != "unsized":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if (way == "half" and self.site.requests(name) < 3) or way == "breaks":
            self.wfile.write(data[: len(data) // 2])
        elif way == "slow" and name == FIRST and not site.patience.is_set():
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            site.patience.wait(30)
        else:
            self.wfile.write(data)


@pytest.fixture
def site(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that has the small MNIST and CIFAR-10; data go below tmp_path / home."""
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Site({f"{name}.gz": gzip.compress(content) for name, content in tiny("mnist").items()})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in tiny("cifar10").items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found.files["cifar-10-binary.tar.gz"] = packed.getvalue()
    handler = type("Handler", (_Handler,), {"site": found})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that go away are expected
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.patience.set()
        server.shutdown()
        thread.join()


def _mnist(*urls: str, name: str = "mnist") -> Source:
    return replace(SOURCES[name], urls=urls)


def _quiet(*_: Any) -> None:
    """Hears nothing."""


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


MNIST_FILES = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"]


# -- what arrives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["good", "moved", "half", "unsized"])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_what_is_fetched_is_whole_and_nothing_else_is_left(
    way: str, name: str, site: Site, tiny: Tiny, tmp_path: Path
) -> None:
    source = _mnist(site.url(way), name=name)
    heard: dict[str, list[tuple[int, int | None]]] = {}
    fetched = fetch(source, lambda what, done, total: heard.setdefault(what, []).append((done, total)))
    assert fetched.how == "downloaded"
    assert fetched.folder == tmp_path / "home" / source.folders[0]
    assert contents(source, fetched.folder) == tiny(name)
    assert _left(fetched.folder) == sorted(file.name for file in source.files)
    assert set(heard) == ({"cifar-10-binary.tar.gz"} if name == "cifar10" else {f"{file}.gz" for file in MNIST_FILES})
    for what, steps in heard.items():
        size = len(site.files[what])
        assert all(total == (None if way == "unsized" else size) for _, total in steps)
        assert max(done for done, _ in steps) == size if way != "unsized" else max(done for done, _ in steps) >= size
    asked = len(site.asked)
    assert fetch(source, _quiet).how == "present"
    assert len(site.asked) == asked


def test_a_download_that_breaks_off_is_tried_again(site: Site) -> None:
    fetch(_mnist(site.url("half")), _quiet)
    assert site.requests(FIRST) == 3


def test_a_download_that_breaks_off_at_every_attempt_leaves_nothing(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    source = _mnist(site.url("breaks"))
    with pytest.raises(
        DataError, match=rf"{FIRST} could not be downloaded: 127\.0\.0\.1:\d+ broke off 4 times"
    ) as error:
        fetch(source, _quiet)
    assert len(error.value.lines) == 2
    folder = tmp_path / "home" / "mnist"
    assert site.requests(FIRST) == 4
    assert _left(folder) == []
    site.ways["breaks"] = "good"
    fetch(source, _quiet)
    assert contents(source, folder) == tiny("mnist")
    assert _left(folder) == MNIST_FILES


def test_a_stalled_download_is_broken_off_and_tried_again(
    site: Site, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_S", 0.3)

    def hear(what: str, done: int, total: int | None) -> None:
        if what == FIRST and site.requests(FIRST) == 2:
            site.patience.set()

    fetched = fetch(_mnist(site.url("slow")), hear)
    assert contents(SOURCES["mnist"], fetched.folder) == tiny("mnist")
    assert site.requests(FIRST) in (2, 3)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("missing", "answers 404 Not Found"),
        ("cut", r"gave a file that (cannot be unpacked \(.+\)|is cut off after .+ bytes)"),
        ("wrong", r"gave a file that (cannot be unpacked \(.+\)|.+its checksum is wrong)"),
        ("huge", "sends more than the 1,205,392 bytes that this file can have"),
        ("endless", "sends more than the 1,205,392 bytes that this file can have"),
    ],
)
def test_what_a_site_gives_wrongly_is_refused_and_leaves_nothing(
    way: str, problem: str, site: Site, tmp_path: Path
) -> None:
    damaged = way in ("cut", "wrong")
    failed = f"the download of {FIRST} is damaged" if damaged else f"{FIRST} could not be downloaded"
    with pytest.raises(DataError, match=rf"{failed}: 127\.0\.0\.1:\d+ {problem}") as refused:
        fetch(_mnist(site.url(way)), _quiet)
    first, second = refused.value.lines
    assert first.startswith(f"data=mnist: {'the download of' if damaged else 'no train-images-idx3-ubyte, '}")
    assert second.startswith("Try again later, or take" if damaged else "Type it again where they can be reached: ")
    assert "--from DIR" in second
    assert _left(tmp_path / "home" / "mnist") == []


@pytest.mark.parametrize("way", ["missing", "cut", "wrong", "huge", "endless"])
def test_where_one_site_fails_the_next_one_is_asked(way: str, site: Site, tiny: Tiny) -> None:
    fetched = fetch(_mnist(site.url(way), site.url("good")), _quiet)
    assert contents(SOURCES["mnist"], fetched.folder) == tiny("mnist")
    assert _left(fetched.folder) == MNIST_FILES


def test_other_content_in_a_sound_gzip_file_is_refused_by_its_checksum(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    site.files[FIRST] = gzip.compress(tiny("mnist", seed=1)[FIRST.removesuffix(".gz")])
    with pytest.raises(DataError, match="gave a file that has another content than mnist's: its checksum is wrong"):
        fetch(_mnist(site.url("good")), _quiet)
    assert _left(tmp_path / "home" / "mnist") == []


def test_without_a_network_two_lines_say_so(site: Site, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source = _mnist(f"http://127.0.0.1:{free.getsockname()[1]}", "http://127.0.0.1:1/x")
        with pytest.raises(
            DataError, match=r"cannot be reached \(ConnectionError\); 127\.0\.0\.1:1 cannot be r"
        ) as error:
            fetch(source, _quiet)
    first, second = error.value.lines
    assert all(str(root / folder) in first for root in fetching.roots() for folder in source.folders)
    assert second.startswith("Type it again where they can be reached: bnlab data fetch mnist. Or take files that you ")
    assert _left(tmp_path / "home" / "mnist") == []


def test_only_what_is_not_there_or_damaged_is_downloaded(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "mnist"
    folder.mkdir(parents=True)
    for name, content in tiny("mnist").items():
        (folder / name).write_bytes(content)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    (folder / "train-labels-idx1-ubyte").write_bytes(b"damaged")
    assert fetch(_mnist(site.url("good")), _quiet).how == "downloaded"
    assert contents(SOURCES["mnist"], folder) == tiny("mnist")
    assert site.asked == [f"/good/{name}-labels-idx1-ubyte.gz" for name in ("train", "t10k")]


def test_damaged_files_that_no_site_can_replace_are_not_called_missing(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "mnist"
    folder.mkdir(parents=True)
    for name, content in tiny("mnist").items():
        (folder / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"^data=mnist: not all intact in one of .*home/mnist.*: train-images-idx3-"):
        fetch(_mnist(site.url("missing")), _quiet)


def test_a_read_only_folder_is_reported_before_any_request(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path / "file"))
    message = (
        r"^data=mnist: not a directory, got '.+/file/mnist'\. Set BNLAB_DATA to a folder that can be written to\.$"
    )
    with pytest.raises(UsageError, match=message):
        fetch(_mnist(site.url("good")), _quiet)
    assert site.asked == []


# -- from a folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_somebody_has_are_copied_and_checked(
    layout: str, packed: bool, site: Site, tiny: Tiny, tmp_path: Path
) -> None:
    origin = tmp_path / "origin" / layout
    origin.mkdir(parents=True)
    for name, content in tiny("mnist").items():
        (origin / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    fetched = fetch(_mnist(site.url("good")), _quiet, tmp_path / "origin")
    assert fetched.how == "copied"
    assert contents(SOURCES["mnist"], fetched.folder) == tiny("mnist")
    assert _left(fetched.folder) == MNIST_FILES
    assert site.asked == []


def test_an_archive_that_somebody_has_is_taken(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(site.files["cifar-10-binary.tar.gz"])
    fetched = fetch(_mnist(name="cifar10"), _quiet, tmp_path)
    assert contents(SOURCES["cifar10"], fetched.folder) == tiny("cifar10")


def test_damaged_and_missing_files_of_somebody_are_refused_and_nothing_is_copied(
    site: Site, tiny: Tiny, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    with pytest.raises(DataError, match=r"^data=mnist: no train-images-idx3-ubyte, .*; looked in .*origin/mnist, "):
        fetch(_mnist(site.url("good")), _quiet, origin)
    for name, content in tiny("mnist").items():
        (origin / name).write_bytes(content)
    (origin / "t10k-labels-idx1-ubyte").write_bytes(tiny("mnist")["t10k-labels-idx1-ubyte"][:-1])
    with pytest.raises(DataError, match=r"origin/t10k-labels-idx1-ubyte is cut off after 57 of 58 bytes"):
        fetch(_mnist(site.url("good")), _quiet, origin)
    assert _left(tmp_path / "home" / "mnist") == []
    assert site.asked == []


# -- several at once, and death ---------------------------------------------------------------------

SCRIPT = """
import sys
from dataclasses import replace
from bnlab.files.sources import File, Source, fetch
source = {source!r}
heard = []
print(fetch(source, lambda what, done, total: heard.append(what)).how, any("waiting" in what for what in heard))
"""


def _process(source: Source) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(source=source)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for(found: Callable[[], object]) -> None:
    waited = threading.Event()
    for _ in range(3000):
        if found():
            return
        waited.wait(0.02)
    pytest.fail("it did not come in a minute")


def test_of_several_processes_one_downloads_and_the_others_wait_for_it(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    source = _mnist(site.url("slow"))
    first = _process(source)
    _wait_for(lambda: site.requests(FIRST))
    others = [_process(source) for _ in range(2)]
    with pytest.raises(subprocess.TimeoutExpired, match="timed out after 1"):
        others[0].wait(1.5)  # as long as the first one is at work
    site.patience.set()
    said = [process.communicate(timeout=200) for process in (first, *others)]
    assert said[0] == ("downloaded False\n", "")
    assert all(err == "" for _, err in said)
    assert [out.split()[0] for out, _ in said[1:]] == ["present", "present"]
    assert len(site.asked) == 4 + 1  # four files, the first one twice, since its site let go of it half-way
    assert contents(SOURCES["mnist"], tmp_path / "home" / "mnist") == tiny("mnist")


def test_what_a_killed_download_leaves_is_replaced_by_the_next_one(site: Site, tiny: Tiny, tmp_path: Path) -> None:
    source, folder = _mnist(site.url("slow")), tmp_path / "home" / "mnist"
    process = _process(source)
    _wait_for(lambda: [part for part in folder.glob(".*.part") if part.stat().st_size > 0])
    process.kill()
    process.communicate(timeout=200)
    assert [name for name in _left(folder) if not name.endswith(".part")] == []
    (folder / f".{MNIST_FILES[0]}.part").write_bytes(b"left by a process that was killed while it wrote")
    site.patience.set()
    assert fetch(source, _quiet).how == "downloaded"
    assert site.requests(FIRST) == 2
    assert contents(SOURCES["mnist"], folder) == tiny("mnist")
    assert _left(folder) == MNIST_FILES


def test_a_full_disk_is_reported_and_leaves_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, url: str, file: Any, pool: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", full)
    with pytest.raises(UsageError, match=r"^data=mnist: no space left on device, got '.+/home/mnist'\. Set BNLAB_DATA"):
        fetch(_mnist(site.url("good")), _quiet)
    assert _left(tmp_path / "home" / "mnist") == []
