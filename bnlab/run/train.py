"""The training loop.

A step is: batch, forward, loss, backward, update. On the steps of the schedule, a watch gathers what the probes need,
and one record goes to the journal and the board.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bnlab.board.events import Profile
from bnlab.core.registry import NORMS, OPTIMIZERS, read_plugin
from bnlab.core.seeds import stream
from bnlab.core.state import correct, untouched_random_state
from bnlab.data.base import Split
from bnlab.net.evaluate import at_chance, evaluate
from bnlab.probes.base import to_host
from bnlab.record.files import DiskError
from bnlab.record.folder import ENDED, HEARTBEAT_S, BrokenError, LostError, RunFolder
from bnlab.record.journal import Record
from bnlab.record.runs import is_divergence
from bnlab.run import checkpoint, host
from bnlab.run.observe import Recorder, Unwatched, Watch, first_non_finite_site
from bnlab.run.setup import Setup

MEASUREMENTS = {
    "train_loss": "loss of the training batch, before the update",
    "train_accuracy": "share of the training batch that is classified correctly, before the update",
    "test_loss": "loss on the test set, with the statistics of eval_bn",
    "test_accuracy": "share of the test set that is classified correctly, with the statistics of eval_bn",
    "lr": "learning rate of the step",
}
"""The measurements of the loop itself; probes declare their own."""

Status = dict[str, Any]


class RunFailedError(RuntimeError):
    """An error inside a run; the traceback is in the run's log.txt."""


def train(
    setup: Setup,
    folder: RunFolder,
    *,
    fresh: bool = False,
    provenance: Mapping[str, Any] | None = None,
    listen: Callable[[Record], None] = lambda record: None,
    stopped: Callable[[], str | None] = lambda: None,
    profile: Profile = "full",
) -> Status:
    """Train a run from its start or its checkpoint; returns the final status, as in status.json.

    `provenance` is added to that of the process; a resumed run keeps what it has. `listen` receives every record.
    `stopped` is called before every step; when it returns a reason, a checkpoint is saved and the status is
    `interrupted`. `profile` is that of the event file. A run that has ended is not changed, unless `fresh`.

    Raises:
        UsageError: another process is training this run, it was begun with other plugins, or it cannot be resumed.
        RunFailedError: an error inside the run.
    """
    with opened(setup, folder, fresh=fresh, provenance=provenance, listen=listen, profile=profile) as run:
        return run.train(stopped) if isinstance(run, Run) else run


@contextmanager
def opened(
    setup: Setup,
    folder: RunFolder,
    *,
    fresh: bool = False,
    provenance: Mapping[str, Any] | None = None,
    listen: Callable[[Record], None] = lambda record: None,
    profile: Profile = "full",
) -> Iterator[Run | Status]:
    """Inside the `with`, the run is this process's; the status of one that has ended. An error there ends the run as
    failed. See `train`."""
    spec = setup.spec
    with _disk(folder), folder.owned() as folder:
        if fresh:
            clear(folder)
        status, damage = _status(folder)
        if status.get("status") in ENDED and not damage:
            yield status
            return
        kept = folder.provenance().get("plugins")
        plugins = [read_plugin(file) for file in spec.plugins]
        facts = {"plugins": [plugin.digest for plugin in plugins]} if plugins else {}
        if kept not in (None, facts.get("plugins")):
            raise BrokenError(folder.path, f"not begun with plugins={list(spec.plugins)} as they are now")
        folder.keep(plugins)
        folder.write_spec(spec.tree(), _provenance(folder, setup, {**(provenance or {}), **facts}))
        if status.get("status") in ENDED:
            folder.log(str(damage))
            yield {**status, "recovered": [damage]}
            return
        try:
            with Run(setup, folder, listen, profile) as run:
                run.recovered[:0] = [damage] if damage else []
                yield run
        except (BrokenError, LostError, DiskError):
            raise
        except (Exception, SystemExit) as error:
            if DiskError.is_of(folder.path, error):
                raise
            folder.log(traceback.format_exc())
            folder.write_status({"status": "failed", "error": f"{type(error).__name__}: {error}"})
            raise RunFailedError(
                f"{type(error).__name__}: {error}. The traceback is in {folder.path / 'log.txt'}."
            ) from error


@contextmanager
def _disk(folder: RunFolder) -> Iterator[None]:
    """Inside it, an error of the run's folder leaves the run as it was last written."""
    try:
        yield
    except OSError as error:
        raise (DiskError(folder.path, error) if DiskError.is_of(folder.path, error) else error) from None


def _status(folder: RunFolder) -> tuple[Status, str | None]:
    """The status, and what is wrong with it or with the spec. One that cannot be read is found out again."""
    try:
        status = folder.status()
    except BrokenError as error:
        return {}, f"{error.problem}; found out again"
    try:
        folder.read_spec()
    except BrokenError as error:
        return status, f"{error.problem}; written again"
    return status, None


@dataclass(slots=True, kw_only=True)
class Turn:
    """One step of a run, before its forward pass."""

    step: int
    lr: float
    batch: Split
    due: bool
    """Whether the step is measured."""
    evaluation: dict[str, Tensor]
    watch: Watch | Unwatched


class Run:
    """A run during training: its parts, its open journal and board, its progress."""

    def __init__(self, setup: Setup, folder: RunFolder, listen: Callable[[Record], None], profile: Profile) -> None:
        self.setup, self.folder, self.listen = setup, folder, listen
        self.module = setup.net.module
        # For modules that draw from torch's global generator; a checkpoint restores its state.
        torch.manual_seed(stream(setup.spec.seed, "noise").initial_seed())
        of_run = (self.module, setup.optimizer, setup.observer, setup.steps)
        self.progress, problem = checkpoint.restore(folder, *of_run)
        self.recovered = [problem] if problem else []
        """What was damaged, and what was used in its place."""
        self.guard = Guard(at_once=setup.spec.device == "cpu", initial_loss=self.progress.initial_loss)
        keep_bytes = self.progress.journal_bytes
        self.recorder = Recorder(folder, setup.observer, listen, keep_bytes=keep_bytes, profile=profile)
        self.step = self.progress.step
        """The next one."""
        self._saved = self._beat = started = time.monotonic()
        self._before = replace(self.progress)  # the times of earlier parts of this run
        self.seconds: Callable[[], float] = lambda: time.monotonic() - started
        """How much time this process has spent on the run."""
        self.random: Tensor | None = None
        """The state of torch's global generator, where it is not that of the process."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        host.limit(None)
        self.recorder.close()

    def train(self, stopped: Callable[[], str | None]) -> Status:
        """Train until the last step, a divergence, or a reason to stop; returns the final status."""
        self.begin()
        return self.go_on(stopped)

    def go_on(self, stopped: Callable[[], str | None]) -> Status:
        """Train a run that has begun."""
        setup, module, optimizer = self.setup, self.module, self.setup.optimizer
        while isinstance(turn := self.turn(stopped), Turn):
            with setup.precision:
                with turn.watch:
                    outputs = module(turn.batch.x)  # [B, K]
                loss = setup.objective(outputs, turn.batch.y)
                if diverged := self.diverged(turn, loss):
                    return diverged
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            turn.watch.before_update()
            optimizer.step()
            self.record(turn, outputs, loss)
        return turn

    def begin(self) -> None:
        """Say that the run is running."""
        first = self.progress.step
        self.folder.log(f"from step {first} of {self.setup.steps}")
        for note in (*self.recovered, *self.setup.notes):
            self.folder.log(note)
        self.folder.write_status({"status": "running", "step": first, "steps": self.setup.steps})
        self.module.train()
        self.step = first

    def turn(self, stopped: Callable[[], str | None]) -> Turn | Status:
        """What the next step needs, its learning rates set; or the final status, if there is none."""
        setup, step = self.setup, self.step
        if step == setup.steps:
            return self._finished()
        if reason := stopped():
            return self._interrupted(step, reason)
        if self._checkpoint_is_due(step):
            if self.guard.settle():
                return self._diverged()
            self._save(step)
        lr = setup.set_rates(step)
        batch, due = setup.batches.at(step), setup.schedule.due(step)
        evaluation = self._evaluated(step) if due else {}
        watch = setup.observer.watch(step, lr, batch)
        return Turn(step=step, lr=lr, batch=batch, due=due, evaluation=evaluation, watch=watch)

    def diverged(self, turn: Turn, loss: Tensor) -> Status | None:
        """The final status, if the run has diverged at this loss."""
        return self._diverged() if self.guard.diverged(turn.step, loss, settle=turn.due) else None

    def record(self, turn: Turn, outputs: Tensor, loss: Tensor) -> None:
        """Note a step after its update."""
        self.step = turn.step + 1
        if not isinstance(turn.watch, Watch):
            return
        metrics = {"train_loss": loss.detach()}
        if self.setup.dataset.classes is not None:
            metrics["train_accuracy"] = correct(outputs, turn.batch.y) / len(turn.batch)
        raw = turn.watch.raw()
        known = {"step": turn.step, "lr": turn.lr}
        self.recorder.add(known, metrics | turn.evaluation, raw, seconds=turn.watch.seconds)

    def _evaluated(self, step: int) -> dict[str, Tensor]:
        """Test loss and accuracy at the weights before this step, if they are due."""
        return self._losses("test") if self.setup.schedule.evaluates(step) else {}

    def _losses(self, name: Literal["train", "test"]) -> dict[str, Tensor]:
        """Loss and accuracy over a split, with the statistics of the spec's `eval_bn`."""
        spec, split = self.setup.spec, getattr(self.setup.dataset, name)
        with untouched_random_state(torch.device(spec.device)):
            found = evaluate(self.setup.inference, split, spec.loss, spec.reduction)
        return {f"{name}_{metric}": value for metric, value in found.items()}

    def beat(self) -> None:
        """Write the heartbeat, if it is due."""
        host.limit(self.setup.spec.launch.timeout)
        now = time.monotonic()
        if now - self._beat >= HEARTBEAT_S:
            self._beat = now
            self.folder.heartbeat()

    def _checkpoint_is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint. Also writes the heartbeat when it is due."""
        self.beat()
        return step > 0 and time.monotonic() - self._saved >= self.setup.spec.launch.checkpoint_s

    def _save(self, step: int) -> None:
        progress = self.progress
        progress.step, progress.initial_loss = step, self.guard.initial_loss
        progress.journal_bytes = self.recorder.sync()
        progress.run_s, progress.measure_s = self._seconds()
        setup, crc = self.setup, self.recorder.journal_crc
        checkpoint.save(self.folder, progress, self.module, setup.optimizer, setup.observer, crc, self.random)
        self._saved = time.monotonic()

    def _seconds(self) -> tuple[float, float]:
        """The seconds spent on this run so far, in all and on measuring, with its earlier parts."""
        return self._before.run_s + self.seconds(), self._before.measure_s + self.recorder.seconds

    def _interrupted(self, step: int, reason: str) -> Status:
        if self.guard.settle():
            return self._diverged()
        self._save(step)
        self.folder.log(f"interrupted by {reason} before step {step}; a checkpoint was saved")
        return self._ended("interrupted", step, {})

    def _diverged(self) -> Status:
        """The journal ends with the diverged step; every final metric is null, which scores worst."""
        step = self.guard.step
        site = first_non_finite_site(self.setup.net, self.setup.batches.at(step).x)
        self.recorder.add({"step": step}, {"train_loss": torch.tensor(self.guard.value)})
        self.recorder.write()
        where = f"first non-finite activation at {site}" if site else "all activations are finite"
        self.folder.log(f"diverged at step {step}: loss {self.guard.value:g}, {where}")
        names = ["loss", "accuracy"] if self.setup.dataset.classes is not None else ["loss"]
        metrics = {f"{split}_{name}": None for split in ("train", "test") for name in names}
        diverged = {"step": step, "loss": _finite(self.guard.value), "site": site}
        return self._ended("diverged", step, metrics, diverged=diverged)

    def _finished(self) -> Status:
        setup, spec = self.setup, self.setup.spec
        tests = self._losses("test")
        found = self._losses("train") | tests
        measured: dict[str, float] = {name: float(value) for name, value in to_host(found).items()}
        finite = all(bool(torch.isfinite(param).all()) for param in self.module.parameters())
        loss = measured["train_loss"] if finite else math.nan
        if is_divergence(loss, self.guard.initial_loss or math.inf):
            self.guard.value, self.guard.step = loss, setup.steps
            return self._diverged()
        self._save(setup.steps)
        self.recorder.add({"step": setup.steps}, tests)
        self.recorder.write()
        dead = at_chance(measured, setup.dataset, spec.loss, spec.reduction)
        metrics = {name: _finite(value) for name, value in measured.items()}
        self.folder.log(f"finished, {metrics}")
        return self._ended("finished", setup.steps, metrics, dead=dead)

    def _ended(self, status: str, step: int, metrics: Mapping[str, float | None], **more: object) -> Status:
        run_s, measure_s = self._seconds()
        timing = {"run_s": run_s, "measure_s": measure_s, "steps_per_s": step / run_s if run_s else None}
        timing["nets"] = self.progress.nets
        ended: Status = {"status": status, "step": step, "steps": self.setup.steps, "metrics": dict(metrics), **more}
        ended |= {"parameters": sum(x.numel() for x in self.setup.net.params.values()), "timing": timing}
        self.folder.write_status(ended)
        if status in ENDED:
            self.folder.previous_file.unlink(missing_ok=True)
        return ended | ({"recovered": list(self.recovered)} if self.recovered else {})


class Guard:
    """Checks the loss for divergence without making a GPU wait: there, losses are read on measured steps and before
    checkpoints; on the CPU, where reading costs nothing, at every step. `step` and `value` are those of the first bad
    loss.
    """

    def __init__(self, *, at_once: bool, initial_loss: float | None) -> None:
        self.at_once, self.initial_loss = at_once, initial_loss
        self.step, self.value = 0, math.nan
        self._pending: list[tuple[int, Tensor]] = []

    def diverged(self, step: int, loss: Tensor, *, settle: bool) -> bool:
        """Whether this loss or a pending one is bad."""
        self._pending.append((step, loss.detach()))
        return self.settle() if settle or self.at_once else False

    def settle(self) -> bool:
        """Read all pending losses; whether one is bad."""
        pending, self._pending = self._pending, []
        if not pending:
            return False
        values = [pending[0][1].item()] if len(pending) == 1 else torch.stack([loss for _, loss in pending]).tolist()
        for (step, _), value in zip(pending, values, strict=True):
            if self.initial_loss is None:
                self.initial_loss = value
            if is_divergence(value, self.initial_loss):
                self.step, self.value = step, value
                return True
        return False


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _provenance(folder: RunFolder, setup: Setup, more: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of this process, `more`, and facts about the parts for readers of the run. Everything but the facts of the
    process stays as it was first written."""
    spec, classes = setup.spec, setup.dataset.classes
    facts: dict[str, Any] = {
        "sites": [site.name for site in setup.net.sites],
        "titles": {"norm": NORMS[spec.norm.name].title, "optim": OPTIMIZERS[spec.optim.name].title},
    }
    if classes is not None:
        facts["classes"] = classes
    if setup.notes:
        facts["notes"] = list(setup.notes)
    now = host.provenance(spec.device, spec.threads)
    kept = {key: value for key, value in folder.provenance().items() if key not in now}
    return now | dict(more) | facts | kept


def clear(folder: RunFolder) -> None:
    """Remove the files of an earlier run, except the lock. The log is emptied: it may be this process's output."""
    for file in folder.path.iterdir():
        if file.name == "log.txt":
            os.truncate(file, 0)
        elif file.is_file() and file.name not in ("lock", "owner.json"):
            file.unlink()
