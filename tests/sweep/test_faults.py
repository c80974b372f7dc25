"""Sweeps that are killed, stopped or run twice at once: real processes, and runs equal to those of one whole sweep."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main

Start = Callable[..., "subprocess.Popen[str]"]
Sweep = Callable[..., Any]
Traces = Callable[[Path], dict[str, Any]]
WaitFor = Callable[..., Any]

LONGER = ("steps=500", "launch.checkpoint_s=0.05")
"""Long enough to be killed in the middle, with checkpoints to resume from."""
ROUNDS = 3


def owners(root: Path) -> list[int]:
    """The processes at work on runs."""
    found = []
    for file in root.rglob("owner.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(json.loads(file.read_text())["pid"]))
    return found


def _is_at_work(root: Path, before: set[int], process: subprocess.Popen[str]) -> bool:
    return bool(set(owners(root)) - before) or process.poll() is not None


def statuses(root: Path) -> list[str]:
    return [json.loads(file.read_text())["status"] for file in sorted(root.rglob("status.json"))]


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_equals_an_undisturbed_one(
    sweep: Sweep, start: Start, traces_of: Traces, wait_for: WaitFor, tmp_path: Path
) -> None:
    """Three times: a run is killed, then the sweep, each at a random moment; then the same command runs again."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill seed {seed}")  # shown when the test fails
    draw = random.Random(seed)
    killed, root = tmp_path / "killed", tmp_path / "killed" / "tiny"
    hit = 0
    for _ in range(ROUNDS):
        process = start(*LONGER, "--runs", str(killed))
        before = set(owners(root))
        wait_for(functools.partial(_is_at_work, root, before, process), "run")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, 0.4))
        for pid in sorted(owners(root))[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, 0.4))
        hit += process.poll() is None
        process.kill()
        process.communicate()
    assert hit >= 2, "the sweep was too quick to be killed"
    process = start(*LONGER, "--runs", str(killed))
    out, err = process.communicate(timeout=250)
    assert (process.returncode, err) == (0, ""), out
    assert sweep(*LONGER, "--runs", str(tmp_path / "whole")).code == 0
    found, whole = traces_of(killed), traces_of(tmp_path / "whole")
    assert len(whole) == 8
    assert found == whole


def test_the_runs_of_a_sweep_that_is_gone_stop_by_themselves(start: Start, wait_for: WaitFor, tmp_path: Path) -> None:
    process = start("steps=200000", "--runs", str(tmp_path))
    wait_for(lambda: len(list(tmp_path.rglob("journal.jsonl"))) == 4, "runs")  # two workers, two runs in each
    process.kill()
    wait_for(lambda: statuses(tmp_path) == ["interrupted"] * 4, "end of the runs")
    logs = [file.read_text() for file in tmp_path.rglob("log.txt")]
    assert all("interrupted by the end of the sweep" in log for log in logs)


def test_ctrl_c_leaves_every_run_resumable(
    sweep: Sweep, start: Start, traces_of: Traces, wait_for: WaitFor, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    process = start("steps=1500", "optim.lr=0.05", "norm=batch", "--runs", str(stopped))
    wait_for(lambda: list(stopped.rglob("journal.jsonl")), "run")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process on it
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=250)
    assert (process.returncode, err) == (130, "")
    line = out.splitlines()[-1]
    assert line.startswith(
        "resume  bnlab sweep --config tiny launch.workers=2 steps=1500 optim.lr=0.05 norm=batch --runs "
    )
    assert set(statuses(stopped)) <= {"interrupted", "finished"}
    assert not owners(stopped)
    words = [word for word in shlex.split(line.removeprefix("resume  bnlab sweep ")) if word != "launch.workers=2"]
    assert sweep(*words).code == 0
    assert sweep("steps=1500", "optim.lr=0.05", "norm=batch", "--runs", str(tmp_path / "whole")).code == 0
    assert traces_of(stopped) == traces_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(
    start: Start, sweep: Sweep, traces_of: Traces, begun: Callable[[Path], int], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    processes = [start("steps=300", "--json", "--runs", str(both)) for _ in range(2)]
    said = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for out, _ in said:
        assert [run["state"] for run in json.loads(out)["runs"]] == ["finished"] * 8
    assert begun(both) == 1
    assert sweep("steps=300", "--runs", str(tmp_path / "whole")).code == 0
    assert traces_of(both) == traces_of(tmp_path / "whole")


def test_the_line_of_a_cell_alone_gives_the_same_bits(sweep: Sweep, traces_of: Traces, tmp_path: Path) -> None:
    """With every probe, including scipy's eigenvalues, and in the same folder."""
    many = ("probes=full", "probes.activations.batch=24", "seed=1", "norm=none,batch", "optim.lr=0.5")
    grid = sweep(*many, "--json", "--runs", "grid").json
    for run in grid["runs"]:
        words = shlex.split(run["line"].replace("--runs grid", "--runs alone"))
        with contextlib.suppress(SystemExit):
            main([*words[1:], "--plain"])
        assert Path(run["run"].replace("grid", "alone", 1)).is_dir()
    assert len(traces_of(tmp_path / "grid")) == 2
    assert traces_of(tmp_path / "grid") == traces_of(tmp_path / "alone")
