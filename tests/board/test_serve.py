"""The link, what it pins and colours, and the server: that it answers, and that it never outlives `bnlab view`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.board import serve
from bnlab.board.serve import Serving, server, view_runs
from bnlab.board.serve.page import Look
from bnlab.cli import main
from bnlab.core.errors import UsageError


def train(runs: Path, *overrides: str) -> None:
    """A tiny run below `runs`, in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    small = ("steps=20", "model.depth=2", "model.width=8")
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit, match=r"^0$"):
        main(["train", "--config", "deep_mlp", *small, *overrides, "--runs", str(runs)])
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two norms at two learning rates."""
    root = tmp_path_factory.mktemp("view") / "runs"
    for norm in ("batch", "none"):
        for lr in ("0.1", "0.3"):
            train(root, f"norm={norm}", f"optim.lr={lr}")
    return root


@pytest.fixture
def viewed() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts `bnlab view`; the process, and the link it prints."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bnlab", "view", "--no-open", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("http"):
                return process, line.strip()
        raise AssertionError(process.communicate()[1])

    yield begin
    for process in processes:
        with process:
            process.kill()


def query_of(link: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(link).query, strict_parsing=True))


# -- the link ---------------------------------------------------------------------------------------------------------

BOTH = ["batch/lr=0.1/seed=0-a", "none/lr=0.1/seed=0-b"]


@pytest.mark.parametrize("above", ["", "deep_mlp/", "deep/er/"])
def test_runs_are_coloured_by_their_norm_wherever_the_root_is(above: str) -> None:
    runs = [above + run for run in [*BOTH, "batch_reference/lr=1/seed=2-c"]]
    regex = server.colour_regex(runs)
    assert regex == "(?:^|/)(batch|batch_reference|none)/lr="
    found = [re.search(regex, run) for run in runs]
    assert [match and match.group(1) for match in found] == ["batch", "none", "batch_reference"]


def test_one_norm_is_coloured_by_learning_rate_and_one_run_not_at_all() -> None:
    runs = ["lr=0.1/seed=0-a", "lr=1e-05/seed=0-b"]
    regex = server.colour_regex(runs)
    assert regex is not None
    found = [re.search(regex, run) for run in runs]
    assert [match and match.group(1) for match in found] == ["lr=0.1", "lr=1e-05"]
    assert server.colour_regex(["lr=0.1/seed=0-a", "lr=0.1/seed=1-b"]) is None
    assert server.colour_regex(["."]) is None


def test_a_norm_named_with_signs_of_regular_expressions_is_quoted() -> None:
    assert server.colour_regex(["a+b/lr=1/seed=0-a", "none/lr=1/seed=0-b"]) == r"(?:^|/)(a\+b|none)/lr="


def test_the_link_says_what_to_show() -> None:
    link = server.deep_link("http://127.0.0.1:6006/", BOTH, ["1_progress/train_loss"], "lr=(0.1|1)/")
    assert link.startswith("http://127.0.0.1:6006/?")
    assert link.endswith("#timeseries")
    assert re.fullmatch(r"[\x21-\x7e]+", link)
    assert query_of(link) == {
        "smoothing": "0",
        "runColorGroup": "regex:(?:^|/)(batch|none)/lr=",
        "pinnedCards": '[{"plugin":"scalars","tag":"1_progress/train_loss"}]',
        "runFilter": "lr=(0.1|1)/",
    }


def test_every_overview_tag_is_one_that_runs_have(runs: Path) -> None:
    assert server.tags_to_pin(serve.event_files(runs).values()) == list(server.OVERVIEW)


def test_only_tags_that_exist_are_pinned(tmp_path: Path) -> None:
    train(tmp_path, "probes=none")
    assert server.tags_to_pin(serve.event_files(tmp_path).values()) == list(server.OVERVIEW[:4])


def test_runs_are_named_by_their_path_below_the_root(runs: Path) -> None:
    names = list(serve.event_files(runs))
    assert [re.sub(r"-\w{10}$", "", name) for name in names] == [
        f"deep_mlp/{norm}/lr={lr}/seed=0" for norm in ("batch", "none") for lr in ("0.1", "0.3")
    ]
    assert list(serve.event_files(runs / names[0])) == ["."]


@pytest.mark.parametrize(
    ("environment", "platform", "seen"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "a b c d"}, "linux", False),
        ({"SSH_TTY": "/dev/pts/0"}, "darwin", False),
        ({}, "darwin", True),
    ],
)
def test_a_browser_is_opened_only_where_somebody_sees_it(
    environment: dict[str, str], platform: str, seen: bool
) -> None:
    assert serve.with_browser(environment, platform) is seen


def test_the_server_answers_only_this_machine_by_default() -> None:
    words = server.command(Path("/r"), port=0, bind_all=False, runs=4)
    assert words[:3] == [sys.executable, "-c", server.PROGRAM]
    assert " ".join(words[4:]) == (
        "--logdir /r --port 0 --host 127.0.0.1 --samples_per_plugin scalars=2000,histograms=100 --reload_interval 5"
    )
    words = server.command(Path("/r"), port=0, bind_all=True, runs=1000)
    assert "--bind_all" in words
    assert "--host" not in words
    assert "scalars=500,histograms=10" in words


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_missing_or_empty_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^RUNS: no such directory, got '.*nowhere'\. Train one first: bnlab train"):
        view_runs(tmp_path / "nowhere", Serving())
    with pytest.raises(UsageError, match=r"^RUNS: no TensorBoard events in this directory, got '.*'\. Train one first"):
        view_runs(tmp_path, Serving())


def test_a_filter_that_is_no_regular_expression_or_matches_nothing_is_reported(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"^--filter: not a regular expression \(.*\), got '\('\.$"):
        view_runs(runs, Serving(run_filter="("))
    with pytest.raises(UsageError, match=r"^--filter: matches none of the runs, got 'zzz'\. The first is .*/lr="):
        view_runs(runs, Serving(run_filter="zzz"))


def test_a_server_that_does_not_start_says_why(runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^view: TensorBoard did not start: .* port {port}, .* in use\.$"):
            view_runs(runs, Serving(port=port, open_browser=False))


ABOVE = "above 3 runs TensorBoard ticks none at first: tick the box above the list, or match fewer with --filter"


@pytest.mark.parametrize(
    ("run_filter", "shown", "line"),
    [
        (None, 4, ABOVE),
        ("batch|none", 4, ABOVE),
        ("/batch/", 2, "showing the 2 that --filter matches now"),
    ],
)
def test_of_more_runs_than_tensorboard_ticks_a_filter_leaves_those_that_it_matches(
    run_filter: str | None, shown: int, line: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def served(
        serving: Serving, logs: Path, runs: int, look: Look, link: Callable[[str], str], lines: list[str]
    ) -> None:
        seen.update(root=logs, lines=lines, files=list(logs.glob("*/*/*/*/events.out.*")))

    monkeypatch.setattr(serve, "MANY_RUNS", 3)
    monkeypatch.setattr(Serving, "serve", served)
    view_runs(runs, Serving(run_filter=run_filter, open_browser=False))
    assert line in seen["lines"]
    assert len(seen["files"]) == shown
    assert seen["root"].exists() is (shown == 4)  # what was made for it is gone, the runs are not
    assert len(serve.event_files(runs)) == 4


@pytest.mark.parametrize(
    ("many", "words", "wanted"),
    [
        (3, [], "comparison"),
        (12, [], "runs"),
        (3, ["--single"], "runs"),
        (3, ["--full"], "runs"),
        (3, ["--filter", "batch"], "runs"),
        (12, ["--compare"], "comparison"),
    ],
)
def test_a_sweep_opens_on_its_comparison_unless_one_asks_for_runs(
    many: int, words: list[str], wanted: str, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def served(serving: Serving, logs: Path, runs: int, look: Look, link: Any, lines: list[str], *_: Any) -> None:
        seen.append(("comparison" if "compare" in logs.name else "runs", lines[1] if len(lines) > 1 else ""))

    monkeypatch.setattr(serve, "MANY_LINES", many)
    monkeypatch.setattr(Serving, "serve", served)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["view", "--no-open", *words, str(swept)])
    said = f"every run by itself: bnlab view {swept} --single" if wanted == "comparison" and not words else ""
    assert seen == [(wanted, said)]


def test_runs_that_cannot_be_compared_are_shown_by_themselves(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed each."""
    seen: list[Path] = []
    monkeypatch.setattr(serve, "MANY_LINES", 3)
    monkeypatch.setattr(Serving, "serve", lambda serving, logs, *_: seen.append(logs))
    serve.view(runs, Serving(open_browser=False))
    assert seen == [runs.resolve()]


# -- the server -------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = [child for child, parent in parents.items() if parent == pid]
    return below + [grandchild for child in below for grandchild in children(child)]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def all_gone(pids: list[int]) -> bool:
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if all(is_gone(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_tensorboard_answers_with_the_runs(
    runs: Path, viewed: Callable[..., tuple[subprocess.Popen[str], str]], asked: Callable[[str], Any]
) -> None:
    process, link = viewed(str(runs), "--filter", "lr=0.3")
    server_there = asked(link)
    assert "TensorBoard" in server_there.text()
    names = list(serve.event_files(runs))
    assert server_there.poll("data/runs", lambda found: len(found) == 4) == names
    tags = server_there.poll("data/plugin/scalars/tags", lambda found: len(found) == 4)
    pins = [card["tag"] for card in json.loads(query_of(link)["pinnedCards"])]
    assert pins == list(server.OVERVIEW)
    assert all(set(pins) <= set(tags[name]) for name in names)
    assert query_of(link)["runFilter"] == "lr=0.3"

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc, which Linux has")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -9)]
)
def test_the_server_ends_however_view_ends(
    number: signal.Signals, code: int, runs: Path, viewed: Callable[..., tuple[subprocess.Popen[str], str]]
) -> None:
    process, _ = viewed(str(runs))
    below = children(process.pid)
    assert below
    os.kill(process.pid, number)
    assert process.wait(30) == code
    assert all_gone(below)


@pytest.mark.parametrize("display", ["", ":0"])
def test_where_no_browser_would_be_seen_the_way_from_elsewhere_is_reported(display: str, runs: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SSH_", "DISPLAY", "WAYLAND_"))}
    words = [sys.executable, "-m", "bnlab", "view", "--no-open", str(runs)]
    seen = kept | ({"DISPLAY": display} if display else {})
    said: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=seen) as process:
        assert process.stdout is not None
        while not said or not said[-1].startswith("http"):
            said.append(process.stdout.readline())
            assert said[-1], said
        process.terminate()
    port = urllib.parse.urlsplit(said[-1]).port
    told = [line for line in said if re.match(rf"from your own machine: ssh -N -L {port}:127\.0\.0\.1:{port} ", line)]
    assert len(told) == (sys.platform not in ("darwin", "win32") and not display)


def test_a_server_that_ends_is_reported(runs: Path, viewed: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds the process in /proc, which Linux has")
    process, _ = viewed(str(runs))
    os.kill(children(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.match(r"view: TensorBoard ended with code -9: ", err)
