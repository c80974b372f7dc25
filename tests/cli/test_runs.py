"""Runs as they are: whatever is missing, broken, alive or dead in their folders."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import runs
from bnlab.cli.table import known, row
from bnlab.record.folder import RunFolder
from bnlab.record.journal import last_record
from bnlab.terminal import tables

SPEC = "seed: 3\nsteps: 100\nnorm: {name: batch}\noptim: {name: sgd, lr: 0.3}\n"
FINISHED: dict[str, Any] = {
    "status": "finished",
    "step": 100,
    "steps": 100,
    "metrics": {"train_loss": 0.0844491, "test_accuracy": 0.958217},
}


def folder(path: Path, status: object = None, spec: str = SPEC, journal: bytes | None = None) -> RunFolder:
    """A run folder with these files; `status` may be text that is no JSON."""
    path.mkdir(parents=True)
    (path / "spec.yaml").write_text(spec)
    if status is not None:
        (path / "status.json").write_text(status if isinstance(status, str) else json.dumps(status))
    if journal is not None:
        (path / "journal.jsonl").write_bytes(journal)
    return RunFolder(path)


def owner(run: RunFolder, *, host: str, pid: int, heartbeat_s: float) -> None:
    (run.path / "owner.json").write_text(json.dumps({"host": host, "pid": pid, "heartbeat_s": heartbeat_s}))


def test_a_finished_run(tmp_path: Path) -> None:
    tree = row(known(folder(tmp_path / "a", FINISHED)))
    assert 0 <= tree.pop("age_s") < 60
    assert tree == {
        "run": str(tmp_path / "a"),
        "status": "finished",
        "norm": "batch",
        "lr": 0.3,
        "seed": 3,
        "step": 100,
        "steps": 100,
        "train_loss": 0.0844491,
        "test_accuracy": 0.958217,
    }


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (None, "not started"),
        ("{", "unreadable"),
        ("[1]", "unreadable"),
        ('{"status": 3}', "unreadable"),
        ('{"status": "interrupted", "metrics": null}', "interrupted"),
        ('{"status": "running", "step": 0, "steps": 100}', "interrupted"),
    ],
)
def test_a_status_that_is_missing_or_broken(status: str | None, shown: str, tmp_path: Path) -> None:
    values = known(folder(tmp_path / "a", status))
    assert [values[key] for key in ("status", "norm", "steps", "train_loss")] == [shown, "batch", 100, None]


@pytest.mark.parametrize("spec", ["", "norm: [", "- 1", "norm: batch\noptim: 3\n", "\x00"])
def test_a_spec_that_is_broken_is_said_and_shown_as_unreadable(spec: str, tmp_path: Path) -> None:
    values = known(folder(tmp_path / "a", FINISHED, spec=spec))
    assert [values[key] for key in ("status", "norm", "lr", "seed", "steps")] == ["unreadable", None, None, None, 100]
    assert values["problem"].startswith(f"{tmp_path / 'a' / 'spec.yaml'}: cannot be read: ")
    out = io.StringIO()
    tables.show_runs([row(values)], out)
    tables.show_card(runs.card(RunFolder(tmp_path / "a")), out)
    assert "unreadable" in out.getvalue()


def test_the_card_of_a_run_says_what_stands_out_in_it(tmp_path: Path) -> None:
    journal = b'{"step": 0, "train_loss": 2}\n'
    card = runs.card(folder(tmp_path / "a", {**FINISHED, "dead": True}, journal=journal))
    assert [finding["name"] for finding in card["findings"]] == ["chance"]
    out = io.StringIO()
    tables.show_card(card, out)
    assert re.search("^findings +The net is no better than the best constant answer", out.getvalue(), re.M)


def test_a_running_run_is_as_far_as_its_journal(tmp_path: Path) -> None:
    journal = b'{"step": 40, "train_loss": 0.5}\n{"step": 41, "train_loss": 0.25}\n{"step": 42, "tra'
    values = known(folder(tmp_path / "a", {"status": "running", "step": 0, "steps": 100}, journal=journal))
    assert [values[key] for key in ("status", "step", "train_loss")] == ["interrupted", 41, 0.25]


@pytest.mark.parametrize("length", [10, 70_000, 400_000])
def test_the_last_record_is_found_whatever_its_length(length: int, tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "filler": "x" * length}) for step in range(3)]
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(line + "\n" for line in lines) + lines[0][:-5])
    assert last_record(journal)["step"] == 2
    journal.write_text(lines[0][:-5])
    assert last_record(journal) == {}
    assert last_record(tmp_path / "none") == {}


def test_a_heartbeat_tells_of_owners_elsewhere(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", {"status": "running", "step": 0, "steps": 100})
    owner(run, host="elsewhere", pid=1, heartbeat_s=time.time() - 30)
    assert known(run)["status"] == "running"
    owner(run, host="elsewhere", pid=1, heartbeat_s=time.time() - 90)
    assert known(run)["status"] == "interrupted"


def test_a_process_id_reused_by_another_process_is_not_the_owner(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", {"status": "running", "step": 0, "steps": 100})
    owner(run, host=socket.gethostname(), pid=os.getpid(), heartbeat_s=time.time())
    (run.path / "lock").touch()
    assert known(run)["status"] == "interrupted"


def test_looking_neither_takes_the_lock_nor_breaks_it(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", {"status": "running", "step": 0, "steps": 100})
    script = (
        "import sys, pathlib; from bnlab.record.folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).owned(): print('mine', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        assert [known(run)["status"] for _ in range(3)] == ["running"] * 3
        process.stdin.close()
        assert process.wait(30) == 0
    assert known(run)["status"] == "interrupted"
    with run.owned():
        assert known(run)["status"] == "running"


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    found = [row(known(folder(tmp_path / name, FINISHED))) for name in ("a", "b")]
    for name, values in zip("ab", found, strict=True):
        values |= {"run": f"runs/quickstart/batch/lr=0.3/seed=3-{name}", "age_s": 200.0}
    found[1] |= {"status": "running", "step": None, "train_loss": None, "test_accuracy": None}
    return found


def test_the_table_in_a_pipe(tmp_path: Path) -> None:
    out = io.StringIO()
    tables.show_runs(rows(tmp_path), out)
    assert out.getvalue().splitlines() == [
        "status    norm    lr  seed     step  train loss  test acc    age  run",
        "-" * 103,
        "finished  batch  0.3     3  100/100     0.08445    0.9582  3 min  runs/quickstart/batch/lr=0.3/seed=3-a",
        "running   batch  0.3     3    -/100           -         -  3 min  runs/quickstart/batch/lr=0.3/seed=3-b",
    ]


class Terminal(io.StringIO):
    """A screen that can draw."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "heads", "end"),
    [
        (120, "status norm lr seed step train_loss test_acc age run", "runs/quickstart/batch/lr=0.3/seed=3-a"),
        (97, "status norm lr seed step train_loss test_acc run", "runs/quickstart/batch/lr=0.3/seed=3-a"),
        (88, "status norm lr seed train_loss test_acc run", "runs/quickstart/batch/lr=0.3/seed=3-a"),
        (66, "status norm lr seed train_loss test_acc run", "  ...seed=3-a"),
        (50, "status norm lr seed train_loss test_acc", "  0.9582"),
    ],
)
def test_a_narrow_screen_loses_columns_and_never_the_norm(
    columns: int, heads: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    tables.show_runs(rows(tmp_path), out)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    assert lines[0].replace("train loss", "train_loss").replace("test acc", "test_acc").split() == heads.split()
    assert lines[2].endswith(end)
    assert max(len(line) for line in lines) <= columns
