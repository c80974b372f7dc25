"""A SLURM of two nodes on this machine's loopback, in a folder of its own and on free ports.

    munged  <-  slurmctld  ->  slurmd n1, slurmd n2
                    |
    mariadbd <- slurmdbd         only with accounting

Every daemon writes its process id into the folder, and is ended by it. Needs root, as slurmd does, and Debian's
slurm-wlm, munge, and for accounting slurmdbd and mariadb-server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SLURM = ("sbatch", "munged", "slurmctld", "slurmd")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
NODES = ("n1", "n2")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(found: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until `found` returns a true value."""
    limit = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < limit, f"no {what} in {seconds:g} s"
        time.sleep(0.1)


class Slurm:
    """The cluster. `environment` is that of processes that use it."""

    def __init__(self, folder: Path, *, accounting: bool) -> None:
        self.folder, self.accounting = folder, accounting
        self.conf = folder / "slurm.conf"
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        names = ("control", *NODES, "slurmdbd", "mariadbd")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))

    def start(self) -> None:
        """Bring it up, and wait until both nodes are idle."""
        self.folder.chmod(0o755)
        self._munge()
        self.conf.write_text(self._settings())
        if self.accounting:
            self._accounting()
        self._daemon("slurmctld", "-c", "-f", str(self.conf))
        for node in NODES:
            self.start_node(node)
        until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "two idle nodes")

    def stop(self) -> None:
        """End the jobs, then every daemon, the controller first."""
        if self.conf.exists():
            subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, check=False)
        for node in NODES:
            self.kill_node(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end(name, signal.SIGTERM)

    def ask(self, *command: str) -> str:
        """What a command of SLURM's prints; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-c", "-f", str(self.conf), "-N", node)

    def kill_node(self, node: str) -> None:
        """As if its power were cut: slurmd, the processes of its jobs and their keepers end without a word."""
        self._end(f"slurmd.{node}", signal.SIGKILL)
        jobs = self.processes(node)
        keepers = {parent for pid in jobs if (parent := _parent(pid)) and "slurmstepd" in _command(parent)}
        for pid in (*keepers, *jobs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str) -> list[int]:
        """Those of jobs on this node."""
        signs = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and signs <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
        return found

    def _end(self, name: str, number: signal.Signals) -> None:
        file = self.folder / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            os.kill(pid, number)
            if name in self.children:
                self.children.pop(name).wait(30)
            limit = time.monotonic() + 10
            while _command(pid) and time.monotonic() < limit:
                time.sleep(0.05)
            if _command(pid):
                os.kill(pid, signal.SIGKILL)
            file.unlink(missing_ok=True)

    def _daemon(self, *command: str) -> None:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def _behind(self, name: str, *command: str) -> None:
        """Start what stays in the foreground."""
        with (self.folder / f"{name}.out").open("w") as out:
            self.children[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key": key, "log": "munged.log", "pid": "munged.pid", "seed": "munge.seed"}
        options = [f"--{name}-file={self.folder / file}" for name, file in files.items()]
        self._daemon("munged", "--force", f"--socket={self.folder / 'munge.socket'}", *options)

    def _accounting(self) -> None:
        here, data = self.folder, self.folder / "mariadb"
        port, sock = self.ports["mariadbd"], self.folder / "mariadb.socket"
        root = ("--no-defaults", "--user=root", f"--datadir={data}")
        self._daemon("mariadb-install-db", *root, "--auth-root-authentication-method=normal")
        place = (f"--socket={sock}", f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={here}/mariadbd.pid")
        self._behind("mariadbd", "mariadbd", *root, *place, "--innodb-buffer-pool-size=16M")
        client = ("mariadb", "--no-defaults", f"--socket={sock}", "-e")
        until(lambda: self.ask(*client, "select 1"), "database")
        user = "'slurm'@'127.0.0.1'"
        self._daemon(*client, f"create user {user} identified by 'loopback'; grant all on *.* to {user};")
        settings = self.folder / "slurmdbd.conf"
        settings.write_text(f"""
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.ports["slurmdbd"]}
SlurmUser=root
LogFile={here}/slurmdbd.log
PidFile={here}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass=loopback
""")
        settings.chmod(0o600)
        self._daemon("slurmdbd")
        until(lambda: "loopback" in self.ask("sacctmgr", "-i", "add", "cluster", "loopback"), "slurmdbd")

    def _settings(self) -> str:
        """`cred_expire`: a requeued job waits so many seconds, by default 120."""
        host, here = socket.gethostname().partition(".")[0], self.folder
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[node]} CPUs=1 State=UNKNOWN"
            for node in NODES
        )
        kept = f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.ports["slurmdbd"]}
AccountingStoragePass={here}/munge.socket
"""
        return f"""
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket,cred_expire=5
StateSaveLocation={here}/control
SlurmdSpoolDir={here}/spool.%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.%n.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.%n.log
SlurmctldPort={self.ports["control"]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
MaxArraySize=101
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
{kept if self.accounting else "AccountingStorageType=accounting_storage/none"}
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def _command(pid: int) -> str:
    """Empty where there is no such process, or only what is left of one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _cluster(*needed: str, accounting: bool) -> Iterator[Slurm]:
    if missing := [name for name in needed if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]:
        pytest.skip(f"no SLURM to start here: {', '.join(missing)} not found")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    pytest.importorskip("submitit")
    folder = Path(tempfile.mkdtemp(prefix="bnlab-slurm-"))
    cluster = Slurm(folder, accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """With accounting, as most labs have it."""
    yield from _cluster(*SLURM, *ACCOUNTING, accounting=True)


@pytest.fixture
def plain_slurm() -> Iterator[Slurm]:
    """Without accounting: there is no `sacct`."""
    yield from _cluster(*SLURM, accounting=False)
