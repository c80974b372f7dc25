"""Event files made anew: they say the same, are left alone when they do, and a server that watches follows."""

from __future__ import annotations

import multiprocessing
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from bnlab.board import run as module
from bnlab.board.events import PATTERN, profile_of, sealed_bytes
from bnlab.board.run import Board, Extent, rebuild
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read
from bnlab.run.setup import assemble
from bnlab.run.train import train

LONG = ("steps=700", "probes.points=700", "probes=none", "model.depth=1", "data.subset=32")
"""Of 701 records: more than an event file shows of a tag."""


def file_of(folder: RunFolder) -> Path:
    [file] = folder.path.glob(PATTERN)
    return file


def events(folder: RunFolder) -> list[bytes]:
    """All but the first, which tells when the file was made."""
    first, *rest = LegacyEventFileLoader(str(file_of(folder))).Load()
    assert first.file_version == "brain.Event:2"
    return [event.SerializeToString() for event in rest]


def losses(folder: RunFolder) -> dict[int, float]:
    return {
        event.step: value.simple_value
        for event in map(Event.FromString, events(folder))
        for value in event.summary.value
        if value.tag == "1_progress/train_loss"
    }


@pytest.fixture
def long(spec_of: Callable[..., RunSpec], run: Callable[..., Any]) -> Any:
    return run(spec_of(*LONG))


def test_a_rebuilt_file_equals_the_one_written_by_the_run(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any], long: Any
) -> None:
    short = run(spec_of("probes=standard", "probes.activations.batch=24"), "short")
    diverged = run(spec_of(*LONG, "norm=none", "optim.lr=1e6", "model.depth=4"), "diverged")
    assert diverged.status["status"] == "diverged"
    for ended in (short, long, diverged):
        live = events(ended.folder)
        file_of(ended.folder).unlink()
        assert rebuild(ended.folder, "full")
        assert events(ended.folder) == live


def test_a_long_run_is_thinned_and_one_that_ended_early_is_not(long: Any, spec_of: Any, run: Any) -> None:
    assert len(long.records) == 701 == long.setup.schedule.records
    found = losses(long.folder)
    whole = {record["step"]: record["train_loss"] for record in long.records if "train_loss" in record}
    assert 250 < len(found) <= 500
    assert (min(found), max(found)) == (0, 699)
    assert max(found.values()) == pytest.approx(max(whole.values()), rel=1e-6)
    diverged = run(spec_of(*LONG, "norm=none", "optim.lr=1e6", "model.depth=4"), "diverged")
    assert list(losses(diverged.folder)) == [record["step"] for record in diverged.records]


def test_a_run_that_was_stopped_and_went_on_shows_what_an_undisturbed_one_shows(
    long: Any, spec_of: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec, folder = spec_of(*LONG), RunFolder(tmp_path / "stopped")
    for stop in (3, 400, 10):
        steps = iter(range(1000))
        train(assemble(spec), folder, stopped=lambda steps=steps, stop=stop: "a test" if next(steps) == stop else None)
        assert profile_of(folder) == "full"
    assert list(losses(folder)) == list(range(413))  # as it stands, it has no more records than can be shown
    train(assemble(spec), folder)
    assert losses(folder) == losses(long.folder)


def test_a_file_as_wanted_is_not_touched(long: Any) -> None:
    for profile in ("light", "full"):
        assert rebuild(long.folder, profile)
        file = file_of(long.folder)
        before = file.stat().st_mtime_ns
        assert profile_of(long.folder) == profile
        assert not rebuild(long.folder, profile)
        assert (file_of(long.folder), file.stat().st_mtime_ns) == (file, before)


def test_there_and_back_again_is_the_same(spec_of: Callable[..., RunSpec], run: Callable[..., Any]) -> None:
    ended = run(spec_of("probes=standard", "probes.activations.batch=24"))
    full = events(ended.folder)
    assert rebuild(ended.folder, "light")
    light = events(ended.folder)
    assert sum(map(len, light)) < sum(map(len, full)) / 9
    assert rebuild(ended.folder, "full")
    assert events(ended.folder) == full


def test_an_incomplete_file_is_rebuilt(long: Any) -> None:
    whole = events(long.folder)
    file = file_of(long.folder)
    assert sealed_bytes(file) == long.folder.journal_file.stat().st_size
    file.write_bytes(file.read_bytes()[:-30])
    assert sealed_bytes(file) is None
    assert profile_of(long.folder) is None
    assert rebuild(long.folder, "full")
    assert events(long.folder) == whole
    file_of(long.folder).write_bytes(b"")
    assert profile_of(long.folder) is None
    with open(long.folder.journal_file, "ab") as journal:
        journal.write(b'{"step":')
    assert rebuild(long.folder, "full")
    assert losses(long.folder) == losses(long.folder)
    assert profile_of(long.folder) == "full"


def _hold(path: Path, ready: Any, done: Any) -> None:
    with RunFolder(path).owned():
        ready.set()
        done.wait(60)


def test_a_run_that_somebody_is_at_work_on_is_not_touched(long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(long.folder.path, ready, done))
    holder.start()
    assert ready.wait(60)
    file = file_of(long.folder)
    assert not rebuild(long.folder, "light")
    monkeypatch.setattr(module.RunFolder, "alive", lambda folder: False)  # as if it had begun just now
    assert not rebuild(long.folder, "light")
    done.set()
    holder.join()
    assert file_of(long.folder) == file
    assert rebuild(long.folder, "light")


def test_the_old_file_is_removed_when_the_new_one_is_complete(long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment there is a complete file under a name that TensorBoard looks at."""
    seen: list[tuple[int, bool]] = []
    add, unlink = Board.add, Path.unlink

    def watched_add(board: Board, record: Any) -> None:
        seen.append((len(list(long.folder.path.glob("*tfevents*"))), profile_of(long.folder) == "full"))
        add(board, record)

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        if "tfevents" in path.name:
            new = next(file for file in long.folder.path.glob("*tfevents*") if file != path)
            assert sealed_bytes(new) == long.folder.journal_file.stat().st_size
        unlink(path, missing_ok)

    monkeypatch.setattr(Board, "add", watched_add)
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    assert rebuild(long.folder, "light")
    assert set(seen) == {(1, True)}
    assert profile_of(long.folder) == "light"


def test_sites_without_names_are_numbered(long: Any, tmp_path: Path) -> None:
    """As of runs that were made before the names were written down."""
    records = [{"step": 0, "train_loss": 1.0, "grad_norm": [1.0, 2.0], "wall_s": 1.0}]
    assert module._sites({"provenance": {}}, records) == ["L00", "L01"]
    assert module._sites({"provenance": {"sites": ["L00_fc", "L01_out"]}}, records) == ["L00_fc", "L01_out"]


def test_a_server_that_watches_shows_the_right_series_after_a_rewriting(
    long: Any, tensorboard: Callable[..., Any], tmp_path: Path
) -> None:
    """TensorBoard's fast loader, which it takes where it is installed, reads every file of a run once, forgets those
    that are gone but not what they said, and drops of a tag the points from the first step on that a later file tells
    again. (Tags that the later file does not have, it shows until it is started again; the slow loader, with
    --load_fast=false, joins the points of both files until then.)"""
    pytest.importorskip("tensorboard_data_server", reason="TensorBoard's fast loader")
    name, folder = long.folder.path.name, long.folder
    records = list(read(folder.journal_file))
    spec, sites = folder.spec(), folder.spec()["provenance"]["sites"]
    board = Board(folder.path, sites, extent=Extent(records=701, steps=700), spec=spec)
    board.rewrite(records[:300])  # as a run would that is at its step 300
    board.flush()
    server = tensorboard(tmp_path)
    query = f"data/plugin/scalars/scalars?{urllib.parse.urlencode({'run': name, 'tag': '1_progress/train_loss'})}"
    server.poll("data/plugin/scalars/tags", lambda tags: "1_progress/train_loss" in tags.get(name, {}))
    board.close()

    for profile in ("full", "light"):
        assert rebuild(folder, profile)
        wanted = [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses(folder).items()]
        found = server.poll(query, lambda points, wanted=wanted: len(points) == len(wanted))
        assert [(step, loss) for _, step, loss in found] == wanted
    assert list(server.get("data/runs")) == [name]
