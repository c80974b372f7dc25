"""A run's folder: files that are complete or absent, and one owner at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.errors import UsageError
from bnlab.record.folder import DEAD_AFTER_S, HEARTBEAT_S, RunFolder, find_runs, write_atomically

HOLD = """
import sys, time
from pathlib import Path
from bnlab.record.folder import RunFolder
with RunFolder(Path(sys.argv[1])).owned():
    print("mine", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_owner_is_refused_with_the_name_of_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    message = rf"process {holder.pid} on {socket.gethostname()} is training this run\. Wait for it, or stop it\.$"
    with pytest.raises(UsageError, match=message), RunFolder(tmp_path).owned():
        pass
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == holder.pid


def test_a_killed_owner_s_run_is_taken_over_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunFolder(tmp_path).owned():
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


def test_a_second_owner_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path).owned():
        with pytest.raises(UsageError, match="is training this run"), RunFolder(tmp_path).owned():
            pass
        assert (tmp_path / "owner.json").exists()


def test_a_run_is_free_again_after_its_owner_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path).owned():
            pass
        assert not (tmp_path / "owner.json").exists()
    with pytest.raises(ArithmeticError, match="inside"), RunFolder(tmp_path).owned():
        raise ArithmeticError("inside")
    with RunFolder(tmp_path).owned():
        pass


def _elsewhere(folder: Path, age_s: float) -> None:
    owner = {"host": "another-host", "pid": 1, "heartbeat_s": time.time() - age_s}
    (folder / "owner.json").write_text(json.dumps(owner))


def test_an_owner_counts_as_dead_after_a_minute_which_is_many_heartbeats() -> None:
    assert DEAD_AFTER_S == 60
    assert DEAD_AFTER_S >= 5 * HEARTBEAT_S


def test_an_owner_on_another_host_with_a_fresh_heartbeat_keeps_its_run(tmp_path: Path) -> None:
    _elsewhere(tmp_path, age_s=DEAD_AFTER_S / 2)
    for _ in range(2):  # a refusal changes nothing
        message = r"process 1 on another-host is training this run"
        with pytest.raises(UsageError, match=message), RunFolder(tmp_path).owned():
            pass
    assert json.loads((tmp_path / "owner.json").read_text())["host"] == "another-host"


def test_an_owner_on_another_host_with_an_old_heartbeat_has_lost_its_run(tmp_path: Path) -> None:
    _elsewhere(tmp_path, age_s=DEAD_AFTER_S + 1)
    with RunFolder(tmp_path).owned():
        assert json.loads((tmp_path / "owner.json").read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_an_unreadable_owner_file_stops_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "owner.json").write_text(text)
    with RunFolder(tmp_path).owned():
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()


def test_a_heartbeat_moves_forward(tmp_path: Path) -> None:
    with RunFolder(tmp_path).owned() as folder:
        first = json.loads((tmp_path / "owner.json").read_text())
        time.sleep(0.01)
        folder.heartbeat()
        second = json.loads((tmp_path / "owner.json").read_text())
    assert second["heartbeat_s"] > first["heartbeat_s"]
    assert abs(second["heartbeat_s"] - time.time()) < 5


class _PowerCut(BaseException):
    """Ends a process without output."""


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, b"old")

    def cut(*args: object) -> None:
        raise _PowerCut

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(_PowerCut, match=r"^$"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_status_and_spec_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.status() == {}
    status: dict[str, Any] = {"status": "finished", "step": 3, "metrics": {"loss": 0.25, "accuracy": None}}
    folder.write_status(status)
    assert folder.status() == status
    tree = {"name": "größe", "optim": {"lr": 1e-05, "drop_at": [0.5]}, "steps": None, "norm": {"layers": [0, 2]}}
    folder.write_spec(tree, {"torch": "1", "argv": ["a", "b=1"]})
    assert folder.spec() == tree | {"provenance": {"torch": "1", "argv": ["a", "b=1"]}}


def test_a_log_keeps_its_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log("one")
    folder.log("zwei größer")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["one", "zwei größer"]


def test_runs_are_found_by_their_spec_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/lr=1/seed=0", "a/x", "a/y"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "spec.yaml").write_text("name: x\n")
    (tmp_path / "a" / "empty").mkdir()
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert found == ["a/x", "a/y", "b/lr=1/seed=0"]
    assert [run.path for run in find_runs(tmp_path / "a" / "x")] == [tmp_path / "a" / "x"]
    assert find_runs(tmp_path / "nowhere") == []
