"""SIGKILL at random moments, and SIGSTOP while another process takes the run over: real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("BNLAB_KILLS", "12"))
"""Of each line; a hundred take some minutes."""
WORDS = ("--config", "mlp_digits", "steps=60", "model.depth=2", "model.width=6", "norm=batch", "optim.momentum=0.9")
LINES = {
    "train": ("train", *WORDS, "launch.checkpoint_s=0.02"),
    "sweep": ("sweep", *WORDS, "launch.checkpoint_s=0.02", "seed=0,1,2", "launch=inline"),
}

KILLER = '''
"""Types a line in child processes and kills each at a random moment. One that came to its end begins a new folder."""
import contextlib, json, os, random, signal, sys, time

import bnlab.grids.preload
import torch
from bnlab.cli import main, sweep

torch.set_num_threads(1)
sweep._reported = lambda *_: None
kills, *line = json.loads(sys.argv[1])
draw, folders, hit, whole_s = random.Random(0), 0, 0, None


def child(runs):
    found = os.fork()
    if found == 0:
        code = 70
        with contextlib.suppress(Exception):
            try:
                main([*line, "--runs", runs, "--json"])
            except SystemExit as ended:
                code = ended.code or 0
        os._exit(code)
    return found


while hit < kills or whole_s is None:
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        begun = time.monotonic()
        process = child(f"runs-{folders}")
        if whole_s is not None:
            time.sleep(draw.uniform(0, whole_s))
            os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        hit += code == -signal.SIGKILL
        if code != -signal.SIGKILL and code != 0:
            sys.exit(f"{line} ended with {code} after {hit} kills")
    whole_s = whole_s or time.monotonic() - begun
    folders += 1
print(json.dumps([hit, folders]))
'''


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(LINES))
def test_a_line_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(
    command: str, traces_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    asked = json.dumps([KILLS, *LINES[command]])
    done = subprocess.run([sys.executable, "-c", KILLER, asked], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    hit, folders = json.loads(done.stdout.splitlines()[-1])
    print(f"{command}: {hit} kills, {folders} folders")
    assert hit >= KILLS
    assert folders >= 2
    whole = traces_of(tmp_path / "runs-0")
    assert len(whole) == (1 if command == "train" else 3)
    assert all(status["status"] == "finished" for status, *_ in whole.values())
    for number in range(1, folders):
        assert traces_of(tmp_path / f"runs-{number}") == whole
    assert not list(tmp_path.rglob("seed=*/.*.[0-9]*"))  # one of study.yaml may stay


ON_HOST = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from bnlab.cli import main
main(sys.argv[2:])
"""


@pytest.fixture
def on_host(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Types a line in a process whose host has that name."""
    processes: list[subprocess.Popen[str]] = []

    def begin(host: str, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", ON_HOST, host, *words]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(line, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_process_that_was_stopped_while_its_run_was_taken_over_writes_nothing(
    on_host: Callable[..., subprocess.Popen[str]], wait_for: Callable[..., Any], tmp_path: Path
) -> None:
    """Real processes and signals. What a minute and a file system without locks would do is done by hand: the heartbeat
    is made old, and the lock is another file."""
    line = ("train", *WORDS[:2], "steps=1000", *WORDS[3:], "launch.checkpoint_s=0.02", "--json")
    first = on_host("first", *line)
    wait_for(lambda: list(tmp_path.rglob("checkpoint.previous.pt")), "checkpoint")
    first.send_signal(signal.SIGSTOP)
    [owner] = tmp_path.rglob("owner.json")
    assert json.loads(owner.read_text())["host"] == "first"
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"heartbeat_s": 0.0}))
    (owner.parent / "lock").unlink()
    out, _ = on_host("second", *line).communicate(timeout=200)
    assert json.loads(out)["status"] == "finished"
    before = {file: file.read_bytes() for file in owner.parent.iterdir() if file.name[0] != "."}
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=200)
    assert (first.returncode, out) == (2, "")
    assert err.splitlines()[-1].endswith(": another process is training this run. Wait for it, or stop it.")
    assert "Traceback" not in err
    assert {file: file.read_bytes() for file in owner.parent.iterdir()} == before
