"""Which event files `bnlab view` makes anew before TensorBoard is started, and what it says of that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.board import serve
from bnlab.board.events import PATTERN, profile_of
from bnlab.board.serve import update_events
from bnlab.cli import main
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder, find_runs


@pytest.fixture
def three(spec_of: Callable[..., RunSpec], run: Callable[..., Any], tmp_path: Path) -> Path:
    """Three runs with all their tags, and 2 as the number that is too many."""
    ended = run(spec_of(), "runs/0")
    for number in (1, 2):
        shutil.copytree(ended.folder.path, tmp_path / f"runs/{number}")
    return tmp_path / "runs"


def profiles(root: Path) -> list[str | None]:
    return [profile_of(run) for run in find_runs(root)]


def stamps(root: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in root.rglob(PATTERN)}


def brought(root: Path, *, full: bool = False) -> list[str]:
    said: list[str] = []
    update_events(root, full=full, say=said.append)
    return said


def test_many_full_runs_become_light_and_full_again_with_the_option(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert brought(three) == []
    assert profiles(three) == ["full"] * 3
    monkeypatch.setattr(serve, "FULL_RUNS", 2)
    assert brought(three) == ["more than 2 runs: shown with a dozen tags each; all tags: bnlab view RUNS --full"]
    assert profiles(three) == ["light"] * 3
    before = stamps(three)
    assert brought(three) == []
    assert stamps(three) == before
    assert brought(three / "1", full=True) == ["writing all tags of 1 run"]
    assert profiles(three) == ["light", "full", "light"]
    assert brought(three) == []
    assert profiles(three) == ["light", "full", "light"]
    assert brought(three, full=True) == ["writing all tags of 2 runs"]
    before = stamps(three)
    assert brought(three, full=True) == []
    assert stamps(three) == before


def test_only_incomplete_files_are_rebuilt(three: Path) -> None:
    [cut] = (three / "1").glob(PATTERN)
    cut.write_bytes(cut.read_bytes()[:1000])
    before = stamps(three)
    del before[cut.name]
    assert brought(three) == []
    assert profiles(three) == ["full"] * 3
    assert before.items() <= stamps(three).items()


def test_events_of_a_version_without_profiles_stay_unless_they_are_too_many(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in list(three.rglob(PATTERN)):
        file.rename(file.with_name(file.name.removesuffix(".full")))
    before = stamps(three)
    assert brought(three) == brought(three, full=True) == []
    assert stamps(three) == before
    monkeypatch.setattr(serve, "FULL_RUNS", 2)
    assert len(brought(three)) == 1
    assert profiles(three) == ["light"] * 3


@pytest.mark.parametrize("broken", ["not: [a, spec", "not: a spec", "nor this"])
def test_an_unreadable_file_is_kept_and_reported(broken: str, three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (three / "1" / "spec.yaml").write_text(broken)
    [kept] = (three / "1").glob(PATTERN)
    monkeypatch.setattr(serve, "FULL_RUNS", 2)
    said = brought(three)
    assert said[-1] == "could not write the events of 1 run; the old ones stay"
    assert profiles(three) == ["light", "full", "light"]
    assert list((three / "1").glob(PATTERN)) == [kept]
    assert list(three.rglob(".board.part")) == []


def test_a_file_that_cannot_be_written_is_kept_and_reported(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FULL_RUNS", 2)
    (three / "2" / ".board.part").mkdir()  # in the way of the new file, for root too
    assert brought(three)[-1] == "could not write the events of 1 run; the old ones stay"
    assert profiles(three) == ["light", "light", "full"]


def test_a_run_at_work_and_a_run_without_a_journal_stay_as_they_are(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "alive", lambda folder: folder.path.name == "1")
    (three / "2" / "journal.jsonl").unlink()
    monkeypatch.setattr(serve, "FULL_RUNS", 2)
    before = stamps(three)
    brought(three)
    assert [len(set(before) & {file.name for file in (three / name).glob(PATTERN)}) for name in "012"] == [0, 1, 1]


def test_the_flag_asks_for_all_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # there may be runs in the folder that tests are started in
    asked: list[bool] = []
    monkeypatch.setattr(serve, "view_runs", lambda runs, serving, *, full: asked.append(full))
    for words in (["--full"], ["--single"], ["--single", "--full"], []):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["view", "runs", *words])
    assert asked == [True, False, True, False]
