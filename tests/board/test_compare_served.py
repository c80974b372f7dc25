"""`bnlab view --compare`: a real TensorBoard on a comparison, its page, and what it says of mistakes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.board import serve
from bnlab.board.compare import build, files_of, text
from bnlab.board.compare.lines import by_step
from bnlab.board.events import write
from bnlab.board.serve.server import Server, command, compare_link
from bnlab.board.tags import ASIDE
from bnlab.cli import main

PAIR = ["no norm/lr=0.05", "batch norm/lr=0.05"]


def hash_of(address: str) -> dict[str, str]:
    page, *state = urllib.parse.urlsplit(address).fragment.split("&")
    assert page == "custom_scalars"
    return {key: urllib.parse.unquote(value) for key, value in (item.split("=") for item in state)}


@pytest.fixture(scope="module")
def viewed(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """`bnlab view --compare` at work: its link, and what it said. In the end it leaves nothing behind."""
    aside = tmp_path_factory.mktemp("aside")
    process = subprocess.Popen(
        [sys.executable, "-m", "bnlab", "view", "--no-open", "--compare", str(swept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(aside)},
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith("http"):
            break
    try:
        assert said, process.communicate()[1]
        assert len(list(aside.glob("bnlab-compare-*"))) == 1
        yield said[-1], said
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")
        assert not list(aside.glob("bnlab-*"))
    finally:
        with process:
            process.kill()


# -- the link ---------------------------------------------------------------------------------------------------------


def test_the_link_ticks_what_is_shown_and_leaves_the_others() -> None:
    address = compare_link("http://127.0.0.1:1/", [*PAIR, "batch norm/lr=1"], PAIR, ["1_progress/train_loss"], None)
    assert re.fullmatch(r"[\x21-\x7e]+", address)
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query, strict_parsing=True))
    assert query["smoothing"] == "0"
    assert re.search(query["runColorGroup"].removeprefix("regex:"), PAIR[0])
    state = hash_of(address)
    assert state.keys() == {"_smoothingWeight", "runSelectionState"}
    assert state["_smoothingWeight"] == "0"
    ticks = json.loads(base64.b64decode(state["runSelectionState"]))
    assert ticks == {PAIR[0]: True, PAIR[1]: True, "batch norm/lr=1": False, ASIDE: True}


def test_of_many_lines_only_those_shown_are_named() -> None:
    many = [f"batch norm/lr={rate}" for rate in range(40)]
    state = hash_of(compare_link("http://127.0.0.1:1/", many, many[3:5], [], None))
    ticks = json.loads(base64.b64decode(state["runSelectionState"]))
    assert [name for name, ticked in ticks.items() if ticked] == [*many[3:5], ASIDE]
    assert len(ticks) == 41, "of forty, the page ticks those that are not named"
    many.append("batch norm/lr=40")
    state = hash_of(compare_link("http://127.0.0.1:1/", many, many[3:5], [], None))
    assert json.loads(base64.b64decode(state["runSelectionState"])) == {many[3]: True, many[4]: True, ASIDE: True}


def test_a_filter_takes_the_place_of_the_choice() -> None:
    state = hash_of(compare_link("http://127.0.0.1:1/", PAIR, PAIR, [], "lr=0.05|a&b"))
    assert state == {"_smoothingWeight": "0", "regexInput": "lr=0.05|a&b"}


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("batch/lr=0.05/seed=0-*",), r"^--compare: this is one run, got '.*'\. Give the folder of a sweep"),
        (("nowhere",), r"^RUNS: no such directory, got"),
        ((".", "--filter", "zzz"), r"^--filter: matches none of the runs, got 'zzz'\. The first is .*/lr=.*\.$"),
        ((".", "--filter", "("), r"^--filter: not a regular expression \(.*\), got '\('\.$"),
    ],
)
def test_a_mistake_gives_one_line_and_nothing_is_left(
    words: tuple[str, ...],
    said: str,
    swept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    where = next(iter(swept.glob(words[0])), swept / words[0]) if words[0] != "." else swept
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["view", "--compare", "--no-open", str(where), *words[1:]])
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err)
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# -- the server -------------------------------------------------------------------------------------------------------


def test_tensorboard_answers_with_the_layout_and_the_lines(
    viewed: tuple[str, list[str]], swept: Path, asked: Callable[[str], Any]
) -> None:
    address, said = viewed
    assert said[0] == f"12 runs of {swept} as 4 lines, averaged over seeds, Ctrl-C ends it"
    runs = asked(address).poll("data/runs", lambda found: len(found) == 5)
    assert runs[:2] == PAIR
    assert runs[-1] == ASIDE
    found = asked(address).poll("data/plugin/custom_scalars/layout", bool)
    heads = [row["title"] for row in found["category"] if not row["chart"]]
    assert heads == [row["title"] for row in found["category"][:3]], "verdicts come first"
    assert heads[0].startswith(
        "→ direction only: Batch norm trains at larger learning rates than the same net without it"
    )
    first = found["category"][3]
    assert first["title"] == "1. Loss and accuracy; band: 95 % t-interval of the mean over seeds"
    chart = next(chart for chart in first["chart"] if chart["title"] == "train_loss")
    series = chart["margin"]["series"][0]
    wanted = "|".join(f"({re.escape(series[end])})" for end in ("value", "lower", "upper"))
    run = urllib.parse.quote(PAIR[1])
    route = f"data/plugin/custom_scalars/scalars?run={run}&tag="
    answer = asked(address).poll(route + urllib.parse.quote(wanted), lambda found: found["tag_to_events"])
    curves = {tag: [(step, value) for _, step, value in events] for tag, events in answer["tag_to_events"].items()}
    assert curves.keys() == set(series.values())
    bands = zip(*(curves[series[end]] for end in ("lower", "value", "upper")), strict=True)
    assert all(low[1] < mean[1] < high[1] for low, mean, high in bands)
    for category in found["category"][3:]:
        for lines in (chart["multiline"] for chart in category["chart"] if "multiline" in chart):
            for regex in lines["tag"]:
                events = asked(address).get(route + urllib.parse.quote(regex))["tag_to_events"]
                assert len(events) == 1
    for plugin, tags in (("images", len(list((swept / "figures").glob("*.png")))), ("text", 3)):
        there = asked(address).get(f"data/plugin/{plugin}/tags")[ASIDE]
        assert len(there) == tags
        assert all(re.match("0_(figures|text)/", tag) for tag in there)


def test_a_run_that_is_written_again_takes_the_place_of_what_was_shown(
    tmp_path: Path, asked: Callable[[str], Any]
) -> None:
    def of(*points: tuple[int, float]) -> dict[int, bytes]:
        found = by_step({"a/b": points})
        return found | {0: text("0_figures/t", str(points)) + found[0]}

    run = tmp_path / "logs" / "batch norm" / "lr=1"
    write(run, of((0, 1.0), (10, 2.0), (20, 3.0)))
    words = command(tmp_path / "logs", port=0, bind_all=False, runs=1)
    words[words.index("--reload_interval") + 1] = "1"
    route = "data/plugin/scalars/scalars?run=batch%20norm/lr%3D1&tag=a/b"
    with Server(words) as server:
        base = server.address()
        asked(base).poll("data/plugin/scalars/tags", bool)
        for points in (((0, 1.0), (10, 2.0), (20, 3.0)), ((0, 5.0), (5, 6.0)), ((0, 7.0), (5, 8.0), (30, 9.0))):
            write(run, of(*points))
            found = asked(base).poll(route, lambda found, points=points: len(found) == len(points))
            assert [(step, value) for _, step, value in found] == list(points)
            assert len(list(run.iterdir())) == 1


def test_a_comparison_follows_the_runs_and_outlives_a_bad_moment(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnlab.board.compare.draw_all", lambda prepared: ([], []))
    root = shutil.copytree(swept, tmp_path / "copied", ignore=shutil.ignore_patterns("*.pt", "events.*", "figures"))
    (late,) = root.glob("batch/lr=0.05/seed=2-*")
    (aside := tmp_path / "late").mkdir()
    late.rename(aside / "run")
    moments = iter(
        [
            lambda: None,
            lambda: (aside / "run").rename(late),
            lambda: (late.parents[2]).rename(tmp_path / "moved"),
            lambda: (tmp_path / "moved").rename(root),
        ]
    )
    seen: list[set[str]] = []
    logs = tmp_path / "logs"

    class Waiting:
        def wait(self, at_most_s: float) -> None:
            assert at_most_s >= 3.0
            seen.append({file.name for file in logs.rglob("events.out.tfevents.*")})
            next(moments, self.end)()

        def end(self) -> None:
            raise KeyboardInterrupt

    state = files_of(root)
    build(root, logs)
    with contextlib.suppress(KeyboardInterrupt):
        serve.follow(root, logs, state, 3.0, Waiting())  # type: ignore[arg-type]
    assert seen[0] == seen[1]  # nothing had happened
    assert len(seen[1] - seen[2]) == 2  # the line of the late run, and the card of all runs
    assert seen[2] == seen[3] == seen[4]  # gone, and there again
