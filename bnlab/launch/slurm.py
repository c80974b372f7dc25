"""On a SLURM cluster: the items in slices, an array of jobs with a slice each, and `Local` inside a job.

What the jobs and this process know of each other is in files (_arrays.py). A command that is typed again finds the
arrays of the one before, and waits for them (docs/decisions/024-clusters.md).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from bnlab.core.errors import UsageError
from bnlab.core.registry import EXECUTORS
from bnlab.core.spec import RunSpec
from bnlab.core.text import count
from bnlab.launch._arrays import Array, Slice, asked, collected, left_below
from bnlab.launch.base import Outcome, executor, to_text
from bnlab.record.folder import DEAD_AFTER_S, RunFolder, write_atomically

SIGNAL_S = 90
"""Seconds before the end of its time at which a job is signalled."""
OURS = "array|cpus-per-task|error|job-name|no-requeue|nodes|ntasks|open-mode|output|partition|requeue|signal|time"
"""Options of sbatch that `launch.extra` cannot have."""
Items = Iterable[Any]
Function = Callable[[Any], Any]


class Slurm:
    """See `base.Detaching`. `sbatch` are the options of sbatch by their names; a job runs `inside` items at once."""

    isolated = True

    def __init__(self, spec: RunSpec, sbatch: Mapping[str, Any], *, slices: int, inside: int, requeues: int) -> None:
        self.at_once = slices if spec.launch.workers == "auto" else spec.launch.workers
        self.spec = replace(spec, launch=replace(spec.launch, name="local", workers=inside, options={}))
        self.sbatch, self.slices, self.requeues = sbatch, slices, requeues
        self.workers = slices * inside
        self.say: Callable[[str], None] = lambda line: None

    def run(
        self,
        function: Function,
        items: Items,
        *,
        on_start: Callable[[Any], None] = lambda item: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome[Any]]:
        """See `base.Executor`. It takes all items at once."""
        arrays = self.submit(function, items)
        try:
            yield from collected(arrays, on_start, stopped)
        finally:
            for array in arrays:
                if array.open:
                    array.cancel()
                elif not array.lost:
                    array.remove()

    def submit(self, function: Function, items: Items) -> list[Array]:
        """Submit the items, less the runs that earlier arrays still have. These arrays come first.

        Raises:
            UsageError: SLURM does not take them.
        """
        waiting = list(items)
        name = f"{function.__module__}:{function.__qualname__}"
        places = {folder.absolute().parents[2] / ".slurm" for item in waiting for folder in item.folders}
        arrays = [array for place in sorted(places) for array in left_below(place) if array.functions == {name}]
        held = {Path(folder) for array in arrays for folder in array.folders()}
        if held:
            names = ", ".join(array.folder.name for array in arrays)
            see = f"squeue -n {names.replace(', ', ',')}"
            self.say(f"in SLURM from an earlier command: {count(len(held), 'run')}, in {names}; see: {see}")
        fresh = [item for one in waiting if (item := one.without(held)) is not None]
        if fresh:
            arrays.append(self._submitted(name, function, fresh, min(places)))
        return arrays

    def tidy(self, root: Path) -> None:
        """See `base.Detaching`."""
        left_below(root / ".slurm")

    def _submitted(self, name: str, function: Function, items: Sequence[Any], place: Path) -> Array:
        import submitit

        folder = place / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', self.spec.name)}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        files = []
        for index, part in enumerate(packed(items, self.slices)):
            tree = {"function": name, "spec": self.spec.tree(), "requeues": self.requeues}
            tree["folders"] = [[str(one.absolute()) for one in item.folders] for item in part]
            tree["items"] = [to_text(function, item.moved([one.absolute() for one in item.folders])) for item in part]
            files.append(folder / f"{index}.json")
            write_atomically(files[-1], json.dumps(tree).encode())
        try:
            jobs = submitit.SlurmExecutor(folder, max_num_timeout=0)
            known = {"job_name": folder.name, "time": self.sbatch["time"], "wckey": None}
            known |= {"signal_delay_s": SIGNAL_S, "array_parallelism": self.at_once}
            known["srun_args"] = [
                f"--cpus-per-task={self.sbatch['cpus-per-task']}"
            ]  # srun does not take it from sbatch
            jobs.update_parameters(**known, additional_parameters={**self.sbatch, "requeue": True})
            numbers = [job.job_id for job in jobs.map_array(work, [str(file.absolute()) for file in files])]
        except Exception as error:  # submitit's own, with what sbatch printed
            shutil.rmtree(folder, ignore_errors=True)
            raise UsageError("launch", f"sbatch: {_last(str(error))}") from None
        (folder / "submitted").touch()
        runs = count(sum(len(item.folders) for item in items), "run")
        number = numbers[0].partition("_")[0]
        self.say(f"job {number} ({folder.name}): {runs} in {count(len(files), 'slice')}; see: squeue -j {number}")
        return Array(folder)


def packed(items: Sequence[Any], slices: int) -> list[list[Any]]:
    """The items in at most so many slices of about one size, each with every n-th.

    >>> packed("abcdefg", 3), packed("ab", 3)
    ([['a', 'd', 'g'], ['b', 'e'], ['c', 'f']], [['a'], ['b']])
    """
    return [list(items[start::slices]) for start in range(min(slices, len(items)))]


def work(file: str) -> None:
    """What a job does: run the items of its slice that have no outcome, in `Local`. At SIGTERM, and at SIGUSR2, which
    SLURM sends before the job's time is over, they stop with checkpoints; unless it was cancelled, the job is queued
    again."""
    reasons: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: reasons.append(number))
    # SLURM signals all processes of a job. Those that start from here on inherit this and are not ended by SIGUSR2.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    tree = json.loads(Path(file).read_text())
    one = Slice(Path(file), tree["folders"])
    one.news()
    function, *parcels = one.parcels()
    numbers = {id(parcels[item]): item for item in one.left}

    def stopped() -> bool:
        return bool(reasons) or signal.SIGUSR2 in signal.sigpending()

    def note(item: Any, **what: Any) -> None:
        line = json.dumps({"item": numbers[id(item)], **what})
        with open(one.file.with_suffix(".jsonl"), "a", encoding="utf-8") as out:
            out.write(f"\n{line}\n")  # the first end of a line is that of one left unfinished

    if restarts():
        _wait_for_owners(one)
    waiting = [parcels[item] for item in one.left]
    for outcome in executor(RunSpec.from_tree(tree["spec"])).run(function, waiting, on_start=note, stopped=stopped):
        if not stopped():  # else it may have stopped early
            note(outcome.item, value=outcome.value, error=outcome.error)
    if stopped():
        _queue_again(tree["requeues"])
        sys.exit(1)


def restarts() -> int:
    """How often this job has been queued again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _wait_for_owners(one: Slice) -> None:
    """The node on which this job ran before may have lost its power: its last heartbeats make its runs look busy."""
    limit = time.monotonic() + DEAD_AFTER_S + 5
    folders = [RunFolder(Path(place)) for item in one.left for place in one.folders[item]]
    while any(folder.alive() for folder in folders) and time.monotonic() < limit:
        time.sleep(1)


def _queue_again(most: int) -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "RUNNING" not in (asked("squeue", "--noheader", f"--jobs={job}", "--format=%T") or ""):
        return  # cancelled, or being queued again by SLURM
    if restarts() >= most:
        print(f"launch.requeues: queued again {most} times, and not done", file=sys.stderr)
    elif asked("scontrol", "requeue", job) is None:
        print("its time is over, and it cannot be queued again here", file=sys.stderr)


def _last(text: str) -> str:
    """The last line, without who says it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")] or [""]
    return re.sub(r"^(sbatch|allocation failure|error|fatal)[: ]+", "", re.sub(r"^sbatch: ", "", lines[-1])).strip()


@EXECUTORS.register("slurm")
def slurm(
    spec: RunSpec,
    *,
    slices: Annotated[int, Ge(1)],
    partition: str | None,
    time: Annotated[int, Ge(2)],
    cpus: Annotated[int, Ge(1)],
    gpus: Annotated[int, Ge(0)],
    requeues: Annotated[int, Ge(0)],
    extra: tuple[str, ...],
) -> Slurm:
    """Raises UsageError where there is no SLURM, or SLURM would not take such a job."""
    if not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
        raise UsageError("launch", "no SLURM on this machine: sbatch not found", "slurm", "Log in where sbatch works.")
    if importlib.util.find_spec("submitit") is None:
        raise UsageError("launch", "submitit is not installed", "slurm", "pip install 'bnlab[slurm]'.")
    if spec.device == "cuda" and gpus == 0:
        raise UsageError("launch.gpus", "device=cuda needs at least 1", gpus)
    given = {"partition": partition, "time": time, "cpus-per-task": cpus, "gpus-per-node": gpus or None}
    pairs = [text.removeprefix("--").partition("=") for text in extra]
    if taken := [name for name, _, _ in pairs if re.fullmatch(OURS, name)]:
        remedy = "Keys for some are launch.time, launch.cpus, launch.partition and launch.slices."
        raise UsageError("launch.extra", "bnlab sets this option of sbatch", taken[0], remedy)
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {name: value if sign else True for name, sign, value in pairs}
    _refuse(options, slices)
    per_device = spec.launch.per_device * gpus
    inside = per_device if spec.device == "cuda" else max(1, cpus // spec.threads)
    return Slurm(spec, options, slices=slices, inside=inside, requeues=requeues)


def _refuse(options: Mapping[str, Any], slices: int) -> None:
    """Raises UsageError for what sbatch would refuse: it checks a job without submitting it."""
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = ["sbatch", "--test-only", *flags, "--wrap=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not re.search("busy|down, drained or reserved", done.stderr, re.I):
        fits = re.search("partition|configuration|gres", done.stderr)
        remedy = "`sinfo -o '%P %l %c %m %G'` lists partitions: time, cores, MB and GPUs of a node." if fits else ""
        raise UsageError("launch", f"sbatch: {_last(done.stderr)}", " ".join(flags), remedy)
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", asked("scontrol", "show", "config") or "")
    if found and slices > int(found[1]):
        raise UsageError("launch.slices", f"this cluster's arrays have at most {found[1]} jobs", slices)
