"""On a Ray cluster: each item is a task, and runs in a new process on some node. The machines need no disk in common.

A task gets a text (`base.to_text`) and the files of its run folders, works on them in a temporary folder of its node,
and returns the files that have changed. Meanwhile this process owns the runs. Ray sends a task again when its worker is
killed or its node is lost; the task then begins with the files that were sent.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

import bnlab
from bnlab.core.errors import UsageError
from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec
from bnlab.launch.base import Item, Outcome, cores, from_text, to_text
from bnlab.launch.local import GRACE_S, TICK_S, Local
from bnlab.record import archive
from bnlab.record.folder import HEARTBEAT_S, BusyError, RunFolder

JOIN_S = 20.0
"""Seconds within which a cluster must answer."""

FORCE_S = GRACE_S + 10.0
"""Seconds after which a task is killed that should stop: its node kills the run's process after GRACE_S, and the files
must still come back."""

PREFIX = "bnlab-task-"
"""Of the temporary folders on the nodes."""

LEFT_S = 3600.0
"""Seconds after which a temporary folder is removed that a killed worker left."""

THERE = "Install there what is here: the same Python, Ray, torch and other dependencies of bnlab."


@dataclass(slots=True, kw_only=True)
class _Sent:
    """A task: its parcel; the run folders as their owner writes them, and their ownership, until it is back."""

    item: Any
    folders: list[RunFolder]
    owned: contextlib.ExitStack
    stopped_at: float | None = None


class Ray:
    """See `base.Executor`. `needs` are Ray's resources for one item. Connects when it is first used."""

    isolated = True

    def __init__(self, address: str | None, workers: int | str, needs: dict[str, float], retries: int) -> None:
        self.address, self.needs, self.retries = address, needs, retries
        self._workers = workers

    @property
    def workers(self) -> int:
        """As many as asked for, or as the cluster has room for now.

        Raises:
            UsageError: nobody answers at the address, or no node has what a run needs.
        """
        if isinstance(self._workers, int):
            return self._workers
        nodes = [node["Resources"] for node in self._ray().nodes() if node["Alive"]]
        room = sum(int(min(node.get(key, 0) / need + 1e-9 for key, need in self.needs.items())) for node in nodes)
        if room == 0:
            needed = ", ".join(f"{need:.3g} {key}" for key, need in self.needs.items())
            raise UsageError("launch", f"a run needs {needed}, and no node of the cluster has that")
        return room

    def _ray(self) -> Any:
        return connected(self.address, cores() if self._workers == "auto" else int(self._workers) * self.needs["CPU"])

    def run(
        self,
        function: Callable[[Item], Any],
        items: Iterable[Item],
        *,
        on_start: Callable[[Item], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Item]]:
        """See `base.Executor`; items are parcels. An outcome without value and error is that of an item whose runs
        another process has, or that did not start before a stop.

        Raises:
            UsageError: see `workers`; or a node cannot run bnlab.
        """
        cluster, most, waiting, more = self._ray(), self.workers, iter(items), True
        task = cluster.remote(work).options(
            num_cpus=self.needs["CPU"], num_gpus=self.needs.get("GPU", 0), max_retries=self.retries
        )
        running: dict[Any, _Sent] = {}
        beat = time.monotonic()
        try:
            while True:
                stop = stopped()
                while more and len(running) < most and not stop:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    on_start(item)
                    try:
                        reference, sent = _send(task, function, item)
                    except BusyError:
                        yield Outcome(item=item)
                    else:
                        running[reference] = sent
                if not running:
                    return
                for reference, sent in running.items() if stop else ():
                    _stop(cluster, reference, sent)
                if time.monotonic() - beat >= HEARTBEAT_S:
                    beat = time.monotonic()
                    for sent in running.values():
                        for folder in sent.folders if sent.item.owns else ():
                            with contextlib.suppress(UsageError):  # it has another owner, which is seen at the end
                                folder.heartbeat()
                for reference in cluster.wait(list(running), timeout=TICK_S)[0]:
                    yield _received(cluster, reference, running.pop(reference))
        finally:
            for reference, sent in running.items():
                cluster.cancel(reference, force=True)
                with contextlib.suppress(UsageError):
                    sent.owned.close()


def _send(task: Any, function: Callable[[Any], Any], item: Any) -> tuple[Any, _Sent]:
    """Raises BusyError if another process has one of the runs."""
    folders = [RunFolder(path) for path in item.folders]
    with contextlib.ExitStack() as owned:
        if item.owns:
            folders = [owned.enter_context(folder.owned()) for folder in folders]
        reference = task.remote(to_text(function, item), archive.pack(archive.content(item.folders)))
        return reference, _Sent(item=item, folders=folders, owned=owned.pop_all())


def _stop(cluster: Any, reference: Any, sent: _Sent) -> None:
    """Ask the task to stop at the first call; kill its worker when it had its time."""
    now = time.monotonic()
    if sent.stopped_at is None:
        sent.stopped_at = now
        cluster.cancel(reference)
    elif now - sent.stopped_at > FORCE_S:
        cluster.cancel(reference, force=True)


def _received(cluster: Any, reference: Any, sent: _Sent) -> Outcome[Any]:
    """Write what came back into the run folders. A run that has another owner now is left as it is."""
    item, ours, lost = sent.item, dict[int, Path](), None
    with contextlib.suppress(UsageError), sent.owned:  # raised at the end of the ownership of such a run
        try:
            text, packed = cluster.get(reference)
            answer = json.loads(text)
            files, gone = archive.unpack(packed, len(item.folders)), answer["gone"]
            archive.accept(gone, len(item.folders))
        except (cluster.exceptions.RayError, ValueError, KeyError, TypeError) as error:
            lost = error
        else:
            for index, folder in enumerate(sent.folders):
                with contextlib.suppress(UsageError):
                    folder.refuse_others()
                    ours[index] = folder.path
            archive.put(files, gone, ours)
    if isinstance(lost, cluster.exceptions.RayError):
        cancelled = sent.stopped_at is not None or isinstance(lost, cluster.exceptions.TaskCancelledError)
        return Outcome(item=item) if cancelled else Outcome(item=item, error=_line(lost, cluster))
    if lost is not None:
        return Outcome(item=item, error=f"what came back was refused: {lost}")
    if refused := answer.get("refused"):
        raise UsageError("launch", f"a node of the cluster refused a run: {refused.rstrip('.')}")
    if len(ours) < len(item.folders):
        return Outcome(item=item)
    return Outcome(item=item, value=answer["value"], error=answer["error"])


def _line(error: Any, cluster: Any) -> str:
    """Why a task has no result, in one line.

    Raises:
        UsageError: its node lacks a package, and so would every other run there.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    missing = next((line for line in lines if "No module named" in line), None)
    if missing:
        raise UsageError("launch", f"a node of the cluster lacks a package: {missing.strip()}", remedy=THERE)
    if isinstance(error, cluster.exceptions.RayTaskError):
        return lines[-1].strip()
    return {
        "WorkerCrashedError": "its worker was killed each time that it was tried",
        "NodeDiedError": "its node was lost each time that it was tried",
        "OutOfMemoryError": "its node ran out of memory each time that it was tried",
    }.get(type(error).__name__, f"{type(error).__name__}: {lines[0].strip()}")


# -- on a node ---------------------------------------------------------------------------------------------------------


def work(text: str, packed: bytes) -> tuple[str, bytes]:
    """The task: run an item in a process of its own. Returns, as JSON, the value or the error and the names of the
    files that are gone; and the files that are new or have changed.

    What `ray.cancel` sends, SIGINT, makes the process save a checkpoint and end; the task then returns as usual.
    """
    stops: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
    try:
        function, item = from_text(text)
    except UsageError as error:
        return json.dumps({"refused": str(error), "gone": []}), archive.pack({})
    importlib.import_module("torch")
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):  # of workers that were killed
        if time.time() - old.stat().st_mtime > LEFT_S and not RunFolder(old).alive():
            shutil.rmtree(old, ignore_errors=True)
    # The server that forks processes was started by an earlier task, which may have had another GPU.
    place = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, RunFolder(Path(name)).owned():
        folders = [Path(name) / str(index) for index in range(len(item.folders))]
        sent = archive.unpack(packed, len(folders))
        archive.put(sent, (), dict(enumerate(folders)))
        for file in Path(name).glob("*/status.json"):
            os.utime(file, (0, 0))  # a run that is sent to start afresh has not done so yet
        moved = item.moved(folders)
        outcomes: list[Outcome[Any]] = list(Local([place]).run(function, [moved], stopped=lambda: bool(stops)))
        files = archive.content(folders)
    outcome = outcomes[0] if outcomes else Outcome(item=moved)
    answer = {"value": outcome.value, "error": outcome.error, "gone": sorted(sent.keys() - files.keys())}
    text = json.dumps(answer)
    for there, here in zip(folders, item.folders, strict=True):  # in what it says of them
        text = text.replace(json.dumps(str(there))[1:-1], json.dumps(str(here))[1:-1])
    return text, archive.pack({name: data for name, data in files.items() if sent.get(name) != data})


# -- the cluster -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def connected(address: str | None, cpus: float) -> Any:
    """The library, connected to the cluster at an address; without one, to a Ray of this process alone, on loopback,
    which ends with it. Ray's own words are not shown, and it reports nothing about its use.

    Raises:
        UsageError: nobody answers there, or refuses us.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it listens on the machine's own address
        os.environ.setdefault("RAY_worker_niceness", "0")  # else runs have less of a core than anything else
    else:
        refuse_unreachable(address)
    library = importlib.import_module("ray")
    library.shutdown()
    logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
    # Ray prints the complaints of its nodes whatever it is asked; this switch of its own stops that.
    vars(importlib.import_module("ray._private.worker"))["_worker_logs_enabled"] = False
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = {"py_modules": [str(Path(bnlab.__file__).parent)]}
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "runtime_env": code}
    if address is None:
        place = tempfile.mkdtemp(prefix="bnlab-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # a short path
        atexit.register(_end, library, place)
        quiet |= {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": place}
    try:
        library.init(address or "local", **quiet)
    except Exception as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise UsageError("launch", f"Ray does not start: {type(error).__name__}: {words}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return library


def _end(library: Any, place: str) -> None:
    library.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def refuse_unreachable(address: str) -> None:
    """Try to connect in another process: an attempt that fails takes Ray two minutes, and shows many lines.

    Raises:
        UsageError: nobody answers in time, or refuses us.
    """
    script = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-c", script, address], stdout=output, stderr=output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(JOIN_S) == 0:
                return
        process.kill()
        process.wait()
        output.seek(0)
        said = output.read()
    if "Token" in said or "AuthenticationError" in said:
        remedy = "Set RAY_AUTH_MODE=token, and copy its ~/.ray/auth_token here or name it in RAY_AUTH_TOKEN_PATH."
        raise UsageError("launch.address", "the cluster refuses the token of this machine", address, remedy)
    if "Version mismatch" in said:
        raise UsageError("launch.address", "the cluster has another version of Ray or Python", address, THERE)
    remedy = "Start one with `ray start --head`, and type this on one of its machines."
    raise UsageError("launch.address", f"no Ray answers within {JOIN_S:.0f} seconds", address, remedy)


@EXECUTORS.register("ray")
def ray(spec: RunSpec, *, address: str | None, retries: Annotated[int, Ge(0)]) -> Ray:
    """Raises UsageError where Ray is not installed, or for an address of another form."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("launch", "needs Ray, which is not installed", "ray", "Run: pip install 'bnlab[ray]'")
    if address is not None and address != "auto" and not re.fullmatch(r"[^/\s]+:\d{1,5}", address):
        raise UsageError("launch.address", "must be HOST:PORT, or auto", address)
    needs = {"CPU": float(spec.threads)}
    if spec.device == "cuda":
        needs["GPU"] = 1 / spec.launch.per_device
    return Ray(address, spec.launch.workers, needs, retries)
