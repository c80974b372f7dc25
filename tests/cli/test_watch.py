"""`bnlab runs --watch`: lines as runs change, until none runs."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from bnlab.analysis.select import Selection
from bnlab.cli import table
from bnlab.core.errors import UsageError
from bnlab.launch import _arrays

SPEC = "seed: 3\nsteps: 100\nnorm: {name: batch}\noptim: {name: sgd, lr: 0.3}\n"


def write(path: Path, status: str, *, alive: bool = False) -> None:
    """A run folder. One that is alive has an owner on another machine."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "spec.yaml").write_text(SPEC)
    (path / "status.json").write_text(json.dumps({"status": status, "step": 100, "steps": 100}))
    (path / "owner.json").unlink(missing_ok=True)
    if alive:
        owner = {"host": f"not-{socket.gethostname()}", "pid": os.getpid(), "heartbeat_s": time.time()}
        (path / "owner.json").write_text(json.dumps(owner))


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines without their times."""
    return [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]


def test_it_ends_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.watch(tmp_path, Selection(), plain=True)
    write(tmp_path / "a", "finished")
    table.watch(tmp_path, Selection(), plain=True)
    assert said(capsys) == ["no runs", "1 finished"]


def test_a_line_for_each_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run waits in SLURM, then runs, then has ended; looks that find nothing new say nothing."""
    run = tmp_path / "a"
    looks = iter(["", "", "running", "running", "finished"])

    def held(root: Path) -> set[str]:
        return {str(run)} if not run.exists() else set()

    def known(root: Path) -> list[object]:
        if status := next(looks):
            write(run, status, alive=status == "running")
        return found(root)

    from bnlab.record import folder

    found = folder.find_runs
    monkeypatch.setattr(folder, "find_runs", known)
    monkeypatch.setattr(_arrays, "held_below", held)
    monkeypatch.setattr(table, "EVERY_S", 0.0)
    table.watch(tmp_path, Selection(), plain=True)
    assert said(capsys) == ["1 in the queue", "1 running", "1 finished"]


def test_the_table_counts_what_is_in_the_queue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any run has a folder, too."""
    from bnlab.cli import runs

    monkeypatch.setattr(_arrays, "held_below", lambda root: {str(tmp_path / "a"), str(tmp_path / "b")})
    runs.runs(tmp_path)
    assert capsys.readouterr().out == "2 in the queue\n"
    write(tmp_path / "a", "running", alive=True)
    runs.runs(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == "1 running, 1 in the queue"
    runs.runs(tmp_path, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (len(shown["runs"]), shown["queued"]) == (1, 1)


def test_it_is_for_people(tmp_path: Path) -> None:
    from bnlab.cli import runs

    with pytest.raises(UsageError, match="--watch: cannot be used with --json, --csv"):
        runs.runs(tmp_path, watching=True, as_json=True)
