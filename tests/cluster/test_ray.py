"""Sweeps on a Ray cluster: nodes on this machine's loopback addresses, with a token; workers, nodes and the sweep
itself are killed, and the runs are those of `launch=local`, bit by bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab.core.errors import UsageError
from bnlab.launch import ray
from bnlab.record.folder import RunFolder

pytest.importorskip("ray", reason="needs the [ray] extra")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is loopback on Linux alone"),
]

CONFIGS = Path(__file__).parent.parent / "configs"
ALL = ("seed=range(0,6)",)
LONGER = ("steps=4000", "launch.lockstep=off", "launch.checkpoint_s=0.2")
"""Every run alone, and long enough to be killed in the middle."""
NORM = """
from torch import nn
from bnlab import NORMS

@NORMS.register("halved")
def halved(channels, dims):
    return nn.Sequential(nn.Identity(), Half())

class Half(nn.Module):
    def forward(self, x):
        return x / 2
"""

Traces = Callable[[Path], dict[str, Any]]


class Nodes:
    """A Ray cluster. Each node is a process group of its own, and ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder / "t"
        self.temporary.mkdir()
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "TMPDIR": str(self.temporary),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # by default 15: on a busy machine nothing would happen
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.2:{_free_port()}"

    def start(self, host: str) -> None:
        """Bring up a node; the first one is the head. Ray gives a node's agents 15 s to start. On a busy machine they
        may need more, and the node then crashes."""
        for _ in range(4):
            if self._started(host):
                return
            self.kill(host)
        raise AssertionError((self.folder / f"{host}.out").read_text())

    def _started(self, host: str) -> bool:
        head = ("--head", f"--port={self.address.rpartition(':')[2]}", f"--temp-dir={self.folder}")
        where = (f"--address={self.address}",) if self.processes else (*head, "--include-dashboard=false")
        script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
        more = ("--num-cpus=2", "--object-store-memory=100000000", "--block")
        output = self.folder / f"{host}.out"
        with output.open("wb") as out:
            process = self.processes[host] = subprocess.Popen(
                [sys.executable, "-c", script, "start", *where, f"--node-ip-address={host}", *more],
                env=self.environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        done = "Ray runtime started"
        until(lambda: done in output.read_text() or process.poll() is not None, f"answer of node {host}")
        return process.poll() is None

    def owners(self, pattern: str) -> list[int]:
        """The processes that own folders of tasks."""
        found = []
        for file in self.temporary.glob(f"{ray.PREFIX}*/{pattern}"):
            with contextlib.suppress(OSError, ValueError):
                found.append(int(json.loads(file.read_text())["pid"]))
        return found

    def workers(self) -> list[int]:
        """Ray's processes that have a task."""
        return [pid for pid in self.owners("owner.json") if _raylet(pid)]

    def kill(self, host: str) -> None:
        """As if its power were cut."""
        process = self.processes.pop(host)
        runs = [pid for pid in self.workers() if host in _raylet(pid)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    """Below those that Ray takes for itself."""
    for port in random.SystemRandom().sample(range(6400, 8200), 200):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("0.0.0.0", port))
            return port
    raise AssertionError("no free port")


def _raylet(pid: int) -> str:
    """The command line of the node's process that started this one."""
    with contextlib.suppress(OSError):
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def until(found: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Wait until `found` returns a true value, and return that."""
    limit = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < limit, f"no {what} in {seconds:g} s"
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="bnlab-rays-", dir="/tmp"))
    made = Nodes(folder)
    try:
        made.start("127.0.0.2")
        made.start("127.0.0.3")
        yield made
    finally:
        for host in list(made.processes):
            made.kill(host)
        shutil.rmtree(folder, ignore_errors=True)


class Sweeps:
    """Starts `bnlab sweep` on the tiny study, in a process group of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        line = (sys.executable, "-m", "bnlab", "sweep", "--config", "tiny", "--config-dir", str(CONFIGS), "--json")
        process = subprocess.Popen(
            [*line, *words], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def run(self, *words: str, code: int = 0) -> Any:
        return self.ended(self.start(*words), code)

    def ended(self, process: subprocess.Popen[str], code: int = 0) -> Any:
        """The object on stdout; nothing of Ray's is there, nor on stderr."""
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, err
        assert "raylet" not in err
        assert "[0m" not in err
        assert out.count("\n") == (code in (0, 3, 130)), out
        return json.loads(out) if out else err


@pytest.fixture
def sweeps(tmp_path: Path, nodes: Nodes) -> Iterator[Sweeps]:
    made = Sweeps(tmp_path, nodes.environment)
    yield made
    for process in made.processes:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Path:
    """The longer runs on this machine."""
    folder = tmp_path_factory.mktemp("whole")
    Sweeps(folder, nodes.environment).run(*ALL, *LONGER[:1], "--runs", str(folder))
    return folder


def states(found: Any) -> dict[str, int]:
    every = [run["state"] for run in found["runs"]]
    return {state: every.count(state) for state in every}


def test_the_runs_of_a_cluster_are_those_of_this_machine(
    sweeps: Sweeps, nodes: Nodes, traces_of: Traces, tmp_path: Path
) -> None:
    on = ("launch=ray", f"launch.address={nodes.address}")
    assert states(sweeps.run(*ALL, *on, "--runs", "there")) == {"finished": 24}
    assert states(sweeps.run(*ALL, "--runs", "here")) == {"finished": 24}
    there, here = traces_of(tmp_path / "there"), traces_of(tmp_path / "here")
    assert len(here) == 24
    assert there == here
    assert not list(nodes.temporary.glob(f"{ray.PREFIX}*"))


@pytest.mark.slow
def test_a_killed_worker_and_a_lost_node_cost_no_run(
    sweeps: Sweeps, nodes: Nodes, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    nodes.start("127.0.0.4")
    process = sweeps.start(*ALL, *LONGER, "launch=ray", f"launch.address={nodes.address}", "--runs", "there")
    until(lambda: len(nodes.owners("0/owner.json")) >= 3, "three runs")
    lost = until(lambda: [pid for pid in nodes.workers() if "127.0.0.4" in _raylet(pid)], "worker on the third node")
    killed = until(
        lambda: [pid for pid in nodes.workers() if "127.0.0.4" not in _raylet(pid)], "worker on another node"
    )
    os.kill(killed[0], signal.SIGKILL)
    nodes.kill("127.0.0.4")
    assert lost
    assert states(sweeps.ended(process)) == {"finished": 24}
    assert traces_of(tmp_path / "there") == traces_of(whole)


@pytest.mark.slow
def test_a_killed_run_and_a_killed_sweep_are_completed_by_the_same_line(
    sweeps: Sweeps, nodes: Nodes, whole: Path, traces_of: Traces, tmp_path: Path
) -> None:
    line = (*ALL, *LONGER, "launch=ray", f"launch.address={nodes.address}", "--runs", "there")
    process = sweeps.start(*line)
    os.kill(until(lambda: nodes.owners("0/owner.json"), "run")[0], signal.SIGKILL)
    until(lambda: len(list(tmp_path.rglob("status.json"))) >= 3, "finished runs")
    process.kill()
    process.communicate()
    until(lambda: not nodes.workers(), "end of its tasks")
    found = sweeps.run(*line)
    assert states(found) == {"finished": 24}
    assert traces_of(tmp_path / "there") == traces_of(whole)


@pytest.mark.slow
def test_a_killed_process_of_a_run_costs_that_run_alone(sweeps: Sweeps, nodes: Nodes, tmp_path: Path) -> None:
    line = ("norm=batch", *LONGER, "launch=ray", f"launch.address={nodes.address}", "--runs", "there")
    process = sweeps.start(*line)
    os.kill(until(lambda: nodes.owners("0/owner.json"), "run")[0], signal.SIGKILL)
    found = sweeps.ended(process, code=3)
    assert sorted(states(found).items())[0] == ("finished", 3)
    (error,) = [run["error"] for run in found["runs"] if "error" in run]
    assert error == "its process was killed by SIGKILL"
    assert states(sweeps.run(*line)) == {"finished": 4}


def test_ctrl_c_brings_checkpoints_back(sweeps: Sweeps, nodes: Nodes, tmp_path: Path) -> None:
    line = ("norm=batch", "steps=200000", "launch=ray", f"launch.address={nodes.address}", "launch.lockstep=off")
    before = set(nodes.temporary.glob(f"{ray.PREFIX}*"))  # of workers that were killed
    process = sweeps.start(*line, "--runs", "there")

    def new() -> list[Path]:
        return [one for one in nodes.temporary.glob(f"{ray.PREFIX}*") if one not in before]

    until(lambda: sum((one / "0" / "journal.jsonl").exists() for one in new()) >= 2, "runs")
    os.killpg(process.pid, signal.SIGINT)
    found = sweeps.ended(process, code=130)
    assert states(found)["interrupted"] >= 2
    back = [RunFolder(file.parent) for file in tmp_path.rglob("checkpoint.pt")]
    assert sum(folder.status()["step"] > 0 for folder in back) >= 2  # others may have been about to begin
    assert not any(folder.alive() for folder in back)
    until(lambda: not nodes.workers(), "end of the tasks")


# -- who answers -------------------------------------------------------------------------------------------------------


def test_a_token_that_does_not_fit_is_one_line(sweeps: Sweeps, nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    sweeps.environment = nodes.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    said = sweeps.run("launch=ray", f"launch.address={nodes.address}", code=2)
    line = said.splitlines()[-1]
    assert "launch.address: the cluster refuses the token of this machine, got" in line
    assert not list(tmp_path.rglob("spec.yaml"))


def test_an_address_where_nobody_answers_is_one_line(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "JOIN_S", 4.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UsageError, match=r"^launch\.address: no Ray answers within 4 seconds, got '127\.0\.0\.1:"):
            ray.refuse_unreachable(f"127.0.0.1:{silent.getsockname()[1]}")


# -- without a cluster -------------------------------------------------------------------------------------------------


def test_without_an_address_a_ray_of_its_own_runs_the_sweep_and_ends(
    sweeps: Sweeps, nodes: Nodes, traces_of: Traces, tmp_path: Path
) -> None:
    """With a norm of the user's own, and beside a cluster that is not touched."""
    (tmp_path / "own.py").write_text(NORM)
    axes = (f"plugins=[{tmp_path / 'own.py'}]", "norm=halved", "seed=0,1")
    sweeps.environment = nodes.environment | {"RAY_ADDRESS": "127.0.0.1:1"}
    before = set(Path("/tmp").glob("bnlab-ray-*"))
    assert states(sweeps.run(*axes, "launch=ray", "launch.workers=1", "--runs", "there")) == {"finished": 4}
    assert set(Path("/tmp").glob("bnlab-ray-*")) <= before
    assert states(sweeps.run(*axes, "--runs", "here")) == {"finished": 4}
    assert traces_of(tmp_path / "there") == traces_of(tmp_path / "here")
    assert all(process.poll() is None for process in nodes.processes.values())
