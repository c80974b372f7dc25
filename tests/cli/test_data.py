"""`bnlab data fetch` and the download before a run: what is shown, what is printed where, exit codes, interrupts."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte
import pytest

from bnlab.cli import main
from bnlab.files.sources import SOURCES, Fetched, roots
from bnlab.terminal.progress import Bars

Tiny = Callable[..., dict[str, bytes]]
TRAIN = ("train", "--config", "deep_mlp", "data=mnist", "steps=2", "model.depth=2", "model.width=8")


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: Any
    out: str
    err: str


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Runs a command in this process, in an empty directory, with no data anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*words: str) -> Said:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as ended,
        ):
            main(words)
        return Said(ended.value.code, out.getvalue(), err.getvalue())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def _put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def site(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that gives every file of the small MNIST, in halves; the names that were asked for."""
    asked: list[str] = []

    def give(source: Any, report: Any, origin: Path | None = None) -> Fetched:
        asked.append(source.name)
        for done in (0, 3_000_000, 6_000_000):
            report("train.gz", done, 6_000_000)
        folder = roots()[0] / source.folders[0]
        _put(folder, tiny(source.name))
        return Fetched(folder=folder, how="downloaded")

    monkeypatch.setattr("bnlab.files.sources.fetch", give)
    return asked


def test_files_taken_from_a_folder_are_said_to_be_there_and_train(
    bnlab: Callable[..., Said], tiny: Tiny, tmp_path: Path
) -> None:
    _put(tmp_path / "have", tiny("mnist"))
    place = tmp_path / "home" / "mnist"
    assert bnlab("data", "fetch", "mnist", "--from", "have") == Said(0, f"mnist: copied and checked, in {place}\n", "")
    assert bnlab("data", "fetch", "mnist") == Said(0, f"mnist: already there and checked, in {place}\n", "")
    said = bnlab("data", "fetch", "mnist", "--json")
    assert json.loads(said.out) == {"data": "mnist", "folder": str(place), "how": "present"}
    assert bnlab(*TRAIN).code == 0


def test_a_download_prints_lines_where_there_is_no_terminal(
    bnlab: Callable[..., Said], site: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "home" / "mnist"
    lines = "train.gz  6 MB\ntrain.gz  3 MB of 6 MB\ntrain.gz  6 MB of 6 MB\n"
    said = bnlab("data", "fetch", "mnist")
    assert said == Said(0, f"{lines}mnist: downloaded and checked, in {place}\n", "")
    said = bnlab("data", "fetch", "mnist", "--json")
    assert json.loads(said.out) == {"data": "mnist", "folder": str(place), "how": "downloaded"}
    assert said.err == lines


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_downloads_its_data_once_before_it_begins(
    as_json: bool, bnlab: Callable[..., Said], site: list[str]
) -> None:
    said = bnlab(*TRAIN, *["--json"] * as_json)
    assert said.code == 0
    assert (said.err if as_json else said.out).startswith("train.gz  6 MB\n")
    if as_json:
        assert json.loads(said.out)["status"] == "finished"
    assert bnlab(*TRAIN, "seed=1").code == 0
    assert site == ["mnist"]


@pytest.mark.parametrize("words", [TRAIN, ("data", "fetch", "mnist"), (*TRAIN, "--json")])
def test_where_data_cannot_be_had_two_lines_say_so_and_no_run_is_left(
    words: tuple[str, ...], bnlab: Callable[..., Said], tmp_path: Path
) -> None:
    said = bnlab(*words)  # the small source is on no site
    assert said.code == 2
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith("data=mnist: no train-images-idx3-ubyte, train-labels-idx1-ubyte, ")
    assert f"looked in {tmp_path / 'home' / 'mnist'}, " in first
    assert "bnlab data fetch mnist. Or take files that you have: bnlab data fetch mnist --from DIR" in second
    assert not (tmp_path / "runs").exists()


def test_a_damaged_file_is_refused_by_name_before_a_run_begins(
    bnlab: Callable[..., Said], tiny: Tiny, tmp_path: Path
) -> None:
    files = tiny("mnist")
    files["train-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"][:-1]
    _put(tmp_path / "home" / "mnist", files)
    said = bnlab(*TRAIN)
    assert said.code == 2
    first, second = said.err.splitlines()
    bad = tmp_path / "home" / "mnist" / "train-labels-idx1-ubyte"
    assert first == f"data=mnist: {bad} is cut off after 207 of 208 bytes."
    assert second.startswith("Remove it, and get an intact one: bnlab data fetch mnist")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nmist",), "data: no such option, got 'nmist'. Did you mean: mnist?"),
        (("digits",), "data=digits: has no files to fetch. It comes with bnlab: use it as it is."),
        (("mnist", "--from", "nowhere"), "--from: no such directory, got 'nowhere'."),
    ],
)
def test_a_failed_download_gives_one_line(
    words: tuple[str, ...], line: str, bnlab: Callable[..., Said], tmp_path: Path
) -> None:
    assert bnlab("data", "fetch", *words) == Said(2, "", f"{line}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_ends_with_130(bnlab: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Any, report: Any, origin: Path | None = None) -> Fetched:
        report("train.gz", 0, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr("bnlab.files.sources.fetch", interrupted)
    said = bnlab("data", "fetch", "mnist")
    assert said.code == 130
    assert said.err == "interrupted; nothing is left half-written\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_interrupted_during_its_download_ends_with_130_and_the_line_to_type(
    as_json: bool, bnlab: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def struck(source: Any, report: Any, origin: Path | None = None) -> Fetched:
        report("train.gz", 0, 100)
        signal.raise_signal(signal.SIGINT)
        report("train.gz", 50, 100)
        pytest.fail("the download went on")

    monkeypatch.setattr("bnlab.files.sources.fetch", struck)
    said = bnlab(*TRAIN, *["--json"] * as_json)
    assert said.code == 130
    again = f"bnlab {' '.join(TRAIN)}"
    assert again in (said.err if as_json else said.out)
    if as_json:
        found = json.loads(said.out)
        assert (found["status"], found["step"], found["metrics"]) == ("interrupted", 0, {})
    assert not (tmp_path / "runs").exists()


# -- progress --------------------------------------------------------------------------------------


def test_lines_tell_each_tenth_once() -> None:
    out = io.StringIO()
    with Bars(out, plain=True, of_bytes=True) as report:
        report("waiting", 0, None)
        report("waiting", 0, None)
        for done in range(0, 10**7 + 1, 10**5):
            report("a.gz", done, 10**7)
        report("b.gz", 9 * 10**6, 10**7)
        report("b.gz", 10**7, 10**7)
        report("small.gz", 0, 4540)
        report("small.gz", 4540, 4540)
    assert out.getvalue().splitlines() == [
        "waiting",
        "a.gz  10 MB",
        *(f"a.gz  {tenth} MB of 10 MB" for tenth in range(1, 11)),
        "b.gz  10 MB",
        "b.gz  10 MB of 10 MB",
        "small.gz  5 kB",
    ]


class _Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_bar_stands_for_each_file_and_the_cursor_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    out = _Screen()
    with Bars(out, plain=False, of_bytes=True) as report:
        report("a.gz", 0, 10**7)
        report("a.gz", 10**7, 10**7)
        report("b.gz", 5 * 10**6, 10**7)
    screen = pyte.Screen(100, 30)
    pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert len(shown) == 2
    assert shown[0].startswith("a.gz ━━━")
    assert "10.0/10.0 MB" in shown[0]
    assert "5.0/10.0 MB" in shown[1]
    assert not screen.cursor.hidden


def test_the_small_sources_are_on_no_site() -> None:
    assert all(SOURCES[name].urls == () for name in ("mnist", "fashion_mnist", "cifar10"))
