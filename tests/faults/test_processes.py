"""Plugins that hang, exit or print; a disk that is full, a folder that is gone, an owner that is no longer one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import bnlab.__main__
from bnlab.core.spec import RunSpec
from bnlab.record import folder as folders
from bnlab.record.files import DiskError
from bnlab.record.folder import LostError, RunFolder
from bnlab.record.journal import Journal, read
from bnlab.run import host
from bnlab.run.observe import Recorder
from bnlab.run.setup import assemble
from bnlab.run.train import train

Stopped = Callable[..., tuple[RunSpec, RunFolder]]
SpecOf = Callable[..., RunSpec]

PLUGIN = """
import os, sys, time
import torch
from bnlab import NORMS


class Bad(torch.nn.Module):
    steps = 0

    def forward(self, x):
        Bad.steps += self.training
        if Bad.steps > 20:
            {act}
        return x


@NORMS.register("{name}", title="bad")
def bad(features, space_dims):
    return Bad()
"""
WORDS = ("--config", "mlp_digits", "steps=60", "model.depth=2", "model.width=6", "probes=none", "data.batch_size=16")


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """`plugin("time.sleep(60)")`: words for runs whose norm does that after some steps."""

    def write(act: str) -> tuple[str, ...]:
        name = f"bad_{hashlib.sha256(act.encode()).hexdigest()[:6]}"  # two plugins may not bring one name
        (tmp_path / "bad.py").write_text(PLUGIN.replace("{act}", act).replace("{name}", name))
        (tmp_path / "configs" / "norm").mkdir(parents=True)
        (tmp_path / "configs" / "norm" / f"{name}.yaml").write_text(f"defaults: [none, _self_]\nname: {name}\n")
        return (*WORDS, "plugins=[bad.py]", f"norm={name},none", "launch=inline", "--json")

    return write


ACTS = [
    ("time.sleep(60)", "no step for 8 s (launch.timeout)"),
    ("sys.exit(3)", "its code called sys.exit(3)"),
    ("raise MemoryError('no room')", "MemoryError: no room"),
    ("torch.empty(10**15)", "RuntimeError: "),
    ("raise KeyError('x')", "KeyError: 'x'"),
]
"""What a plugin does, and the error of its run."""


@pytest.mark.parametrize(("act", "error"), ACTS)
def test_what_a_plugin_does_is_the_failure_of_its_run(
    act: str, error: str, plugin: Callable[[str], tuple[str, ...]], bnlab: Callable[..., Any]
) -> None:
    said = bnlab("sweep", *plugin(act), "launch.timeout=" + ("8" if "sleep" in act else "null"))
    assert said.code == 3
    bad, other = said.json["runs"]
    assert (bad["state"], other["state"]) == ("failed", "finished")
    assert error in bad["error"]
    assert "Traceback" not in said.err
    written = RunFolder(Path(bad["run"])).status()
    assert (written["status"], "Traceback" in Path(bad["log"]).read_text()) == ("failed", True)


def test_what_a_plugin_prints_is_not_on_stdout(
    plugin: Callable[[str], tuple[str, ...]], bnlab: Callable[..., Any]
) -> None:
    said = bnlab("sweep", *plugin("print('hello')"))
    assert [run["state"] for run in said.json["runs"]] == ["finished", "finished"]
    assert "hello" in said.err


LOUD = "(print('hello'), os.system('echo hello'), os.write(1, b'hello'))"


def test_what_code_in_other_processes_prints_is_not_on_stdout(
    plugin: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    """Also what the system's own calls print, and of a worker that asks trained nets."""
    *words, _ = plugin(LOUD)
    (tmp_path / "bad.py").write_text((tmp_path / "bad.py").read_text().replace("Bad.steps > 20", "True"))
    words = [word.replace("launch=inline", "launch=local") for word in words if not word.startswith("--config")]
    (tmp_path / "configs" / "studies").mkdir()
    study = {"base": words.pop(0), "axes": {"seed": "0"}, "ask": {"eval_bn": "running"}}
    (tmp_path / "configs" / "studies" / "loud.yaml").write_text(json.dumps(study))
    for line in (["sweep", "--config", "loud", *words, "launch.workers=1"], ["evaluate", "runs"]):
        done = subprocess.run(
            [sys.executable, "-m", "bnlab", *line, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.count("\n") == 1
        found = json.loads(done.stdout)
        assert found.get("answers", [2, 2]) == [2, 2]
        assert done.stderr.count("hello") >= 3


PROBE = """
import os
import sys
import time
from pathlib import Path

import numpy as np
from bnlab import PROBES


@PROBES.register("{name}", title="bad")
class Bad:
    needs = frozenset()
    metrics = {"nothing": "0"}

    def measure(self, snapshot):
        if snapshot.seed == 1 and snapshot.step >= 20 and Path("act").exists():
            {act}
        return {}

    def summarize(self, raw, carry):
        return {"nothing": np.zeros(())}, carry
"""


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """`stack("sys.exit(3)")`: the line of three runs that train at once, of which the second one's probe does that."""

    def write(act: str, *more: str) -> tuple[str, ...]:
        name = f"bad_{hashlib.sha256(act.encode()).hexdigest()[:6]}"
        (tmp_path / "bad.py").write_text(PROBE.replace("{act}", act).replace("{name}", name))
        (tmp_path / "act").touch()
        (tmp_path / "configs" / "probes").mkdir(parents=True)
        preset = f"defaults: [none, _self_]\n{name}: {{every: 1}}\n"
        (tmp_path / "configs" / "probes" / f"{name}.yaml").write_text(preset)
        words = [word for word in WORDS if not word.startswith("probes=")]
        own = ("plugins=[bad.py]", f"probes={name}", "launch.lockstep=3", "launch.workers=1", "launch.checkpoint_s=0")
        return ("sweep", *words, *own, "seed=0,1,2", *more, "--json")

    return write


def _resumed(line: Sequence[str], bnlab: Callable[..., Any], traces_of: Callable[..., Any]) -> None:
    """The line again, now that the probe does nothing, gives the bits of runs that nothing has happened to."""
    Path("act").unlink()
    assert bnlab(*line, "--retry-failed").code == 0
    words = [word for word in line if not word.startswith("launch=")]
    assert bnlab(*words, "launch=inline", "--runs", "whole").code == 0
    assert traces_of(Path("runs")) == traces_of(Path("whole"))


@pytest.mark.parametrize(("act", "error"), [case for case in ACTS if "torch" not in case[0]])
def test_what_a_plugin_does_to_a_stack_is_the_failure_of_its_run(
    act: str,
    error: str,
    stack: Callable[..., tuple[str, ...]],
    bnlab: Callable[..., Any],
    traces_of: Callable[..., Any],
) -> None:
    line = stack(act, "launch=inline", *(["launch.timeout=8"] if "sleep" in act else []))
    said = bnlab(*line)
    assert (said.code, [run["state"] for run in said.json["runs"]]) == (3, ["finished", "failed", "finished"])
    assert error in said.json["runs"][1]["error"]
    assert "Traceback" not in said.err
    begun = [len(re.findall("from step", file.read_text())) for file in sorted(Path("runs").rglob("log.txt"))]
    assert begun == [1, 1, 1]
    _resumed(line, bnlab, traces_of)


def test_the_time_that_a_step_may_take_begins_again_at_every_step(
    spec_of: SpecOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(host, "limit", limits.append)
    train(assemble(spec_of("launch.timeout=8")), RunFolder(tmp_path))
    assert limits == [8.0] * 12 + [None]


STUCK = """
import signal, time
from bnlab.run import host
host.GRACE_S = 0.5
host.limit(0.5)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
time.sleep(100)  # here
"""


def test_code_that_cannot_be_interrupted_ends_with_its_process_and_shows_where(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    done = subprocess.run([sys.executable, tmp_path / "stuck.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r'stuck\.py", line 7 in <module>', done.stderr)


@pytest.mark.slow
def test_a_plugin_that_ends_its_process_costs_its_own_run_alone(
    stack: Callable[..., tuple[str, ...]], bnlab: Callable[..., Any], traces_of: Callable[..., Any]
) -> None:
    """The others that were trained in that process go on, each alone."""
    line = stack("os._exit(7)", "launch=local")
    said = bnlab(*line)
    assert (said.code, [run["state"] for run in said.json["runs"]]) == (3, ["finished", "interrupted", "finished"])
    assert [run.get("error") for run in said.json["runs"]] == [None, "its process ended with code 7", None]
    begun = [re.findall(r"from step (\d+) of", file.read_text()) for file in sorted(Path("runs").rglob("log.txt"))]
    assert [len(steps) for steps in begun] == [2, 2, 2]  # in the stack, and alone
    assert all(first == "0" and int(then) > 0 for first, then in begun)
    _resumed(line, bnlab, traces_of)


def _owner(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder.path / "owner.json").read_text())
    return found


def _files(folder: RunFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}


@pytest.mark.parametrize("checkpoint_s", ["0", "1000"])
def test_an_owner_that_slept_while_its_run_was_taken_over_writes_nothing(
    checkpoint_s: str, spec_of: SpecOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped before step 5. Another host, whose lock does not see this one's, trains the run to its end."""
    spec, folder, steps = spec_of(f"launch.checkpoint_s={checkpoint_s}"), RunFolder(tmp_path / "run"), iter(range(100))
    left: dict[str, bytes] = {}

    def asleep() -> None:
        if next(steps) != 5:
            return
        (folder.path / "owner.json").write_text(json.dumps(_owner(folder) | {"heartbeat_s": 0.0}))
        (folder.path / "lock").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "another-host")
            assert train(assemble(spec), folder)["status"] == "finished"
            left.update(_files(folder))
            with folder.owned():  # and is at work on it again
                left["owner.json"] = (folder.path / "owner.json").read_bytes()
        (folder.path / "owner.json").write_bytes(left["owner.json"])

    with pytest.raises(LostError, match=r"process .* on another-host is training this run"):
        train(assemble(spec), folder, stopped=asleep)
    assert _files(folder) == left


WRITES: dict[str, Callable[[RunFolder], object]] = {
    "checkpoint": lambda folder: folder.write_checkpoint(b"new"),
    "status": lambda folder: folder.write_status({"status": "running"}),
    "spec": lambda folder: folder.write_spec({}, {}),
    "log": lambda folder: folder.log("new"),
    "heartbeat": lambda folder: folder.heartbeat(),
    "end": lambda folder: None,
}


@pytest.mark.parametrize("write", sorted(WRITES))
def test_no_write_of_an_owner_that_is_no_longer_one_changes_a_file(write: str, tmp_path: Path) -> None:
    with pytest.raises(LostError, match="is training this run"), RunFolder(tmp_path).owned() as folder:  # noqa: PT012
        (tmp_path / "owner.json").write_text('{"token": "of another one"}')
        before = _files(folder)
        WRITES[write](folder)
    assert _files(folder) == before


def test_no_record_of_an_owner_that_is_no_longer_one_is_written(spec_of: SpecOf, tmp_path: Path) -> None:
    setup = assemble(spec_of())
    with pytest.raises(LostError, match="is training this run"), RunFolder(tmp_path).owned() as folder:  # noqa: PT012
        folder.write_spec(setup.spec.tree(), {})
        recorder = Recorder(folder, setup.observer, lambda record: None, keep_bytes=0, profile="full")
        recorder.add({"step": 0}, {})
        (tmp_path / "owner.json").write_text('{"token": "of another one"}')
        before = _files(folder)
        for go_on in (recorder.sync, recorder.close):
            with pytest.raises(LostError, match="is training this run"):
                go_on()
    assert _files(folder) == before


def test_a_resumed_run_has_a_journal_that_no_earlier_owner_has_open(tmp_path: Path) -> None:
    earlier = Journal(tmp_path / "journal.jsonl")
    earlier.append({"step": 0})
    now = Journal(tmp_path / "journal.jsonl", keep_bytes=earlier.sync())
    earlier.append({"step": 7})
    earlier.close()
    now.append({"step": 1})
    now.close()
    assert [record["step"] for record in read(tmp_path / "journal.jsonl")] == [0, 1]


def test_a_heartbeat_from_the_future_is_of_a_clock_that_was_set_back(tmp_path: Path) -> None:
    for ahead_s, alive in ((3600.0, False), (5.0, True), (-30.0, True), (-61.0, False)):
        owner = {"host": "another-host", "pid": 1, "heartbeat_s": folders.time.time() + ahead_s}
        (tmp_path / "owner.json").write_text(json.dumps(owner))
        assert RunFolder(tmp_path).alive() is alive


def test_on_windows_to_ask_whether_a_run_is_alive_sends_its_process_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill(pid, 0) is Ctrl-C there"))
    assert not RunFolder(tmp_path).alive()
    with RunFolder(tmp_path).owned() as folder:
        assert folder.alive()
        owner = (tmp_path / "owner.json").read_text()
    (tmp_path / "owner.json").write_text(owner)  # of a process that was killed
    assert not RunFolder(tmp_path).alive()


@pytest.mark.parametrize("file", ["checkpoint.pt", "status.json", "journal.jsonl", "owner.json", "spec.yaml"])
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(
    file: str, spec_of: SpecOf, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = spec_of("launch.checkpoint_s=0"), RunFolder(tmp_path / "run")
    real, calls = os.fsync, iter(range(100))
    after = 4 if file == "checkpoint.pt" else 0

    def full(descriptor: int) -> None:
        if file in os.readlink(f"/proc/self/fd/{descriptor}") and next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match=r"/run: cannot be written: no space left on device\. When that is mended"):
            train(assemble(spec), folder)
    assert not list(folder.path.glob(".*"))  # what could not be written takes no room
    assert train(assemble(spec), folder)["metrics"] == run(spec, "whole").status["metrics"]
    assert [line for line in (folder.path / "log.txt").read_text().splitlines() if "Traceback" in line] == []


def test_a_folder_that_is_removed_stops_its_run(spec_of: SpecOf, tmp_path: Path) -> None:
    folder, steps = RunFolder(tmp_path / "run"), iter(range(100))

    def remove() -> None:
        if next(steps) == 5:
            folder.path.rename(tmp_path / "gone")

    with pytest.raises(DiskError, match=r"/run: was removed\. "):
        train(assemble(spec_of("launch.checkpoint_s=0")), folder, stopped=remove)
    assert not folder.path.exists()


def test_parts_that_killed_processes_left_are_swept_up(stopped: Stopped) -> None:
    spec, folder = stopped(5)
    (folder.path / "plugins" / "0").mkdir(parents=True)
    parts = [
        folder.path / name for name in (".checkpoint.pt.123", ".status.json.9", "plugins/0/.my.py.77", ".board.part")
    ]
    for part in parts:
        part.write_bytes(b"x")
    train(assemble(spec), folder)
    assert [part for part in parts if part.exists()] == []


def test_ctrl_c_before_a_command_can_note_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnlab.cli.main", interrupted)
    with pytest.raises(SystemExit) as ended:
        bnlab.__main__.main()
    assert (ended.value.code, *capsys.readouterr()) == (130, "", "interrupted before anything began\n")
