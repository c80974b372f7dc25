"""Runs the due probes without changing the run, and writes their measurements.

What the probes need is gathered once per measured step: that step's forward pass is tapped, the weights before the
update are copied, the probe batch goes through the net and its buffers are restored, and all measurements cross to the
host in one transfer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bnlab.board.events import Profile
from bnlab.board.run import Board, Extent
from bnlab.core.seeds import stream
from bnlab.core.state import (
    Objective,
    PreservedBuffers,
    RandomState,
    State,
    copy_each,
    outputs_at,
    outputs_now,
    random_state,
    untouched_random_state,
)
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.net.wrap import BATCH_NORMS, Sites, Tap, TrainingSites, TrainingTap
from bnlab.probes.base import NO_DATA, Carry, Metrics, Need, Probe, Raw, Snapshot, layout_of, to_host
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal, Record, read

WRITE_AFTER, WRITE_AFTER_S = 32, 0.25
"""Records are written when this many are pending, or this long after the last write."""


class Schedule:
    """Which steps of a run are measured, and at which of those the test set is evaluated.

    `points` steps at equal distance from step 0 on, and the last step. Before the second of them a few more, each about
    1.4 times the previous one, since most changes happen early.

    >>> [step for step in range(100) if Schedule(steps=100, points=5, eval_points=2).due(step)]
    [0, 1, 2, 3, 4, 6, 8, 11, 16, 20, 40, 60, 80, 99]
    """

    def __init__(self, *, steps: int, points: int, eval_points: int) -> None:
        self.steps, self.every = steps, math.ceil(steps / points)
        self.eval_every = self.every * math.ceil(steps / self.every / eval_points)
        early = {round(2 ** (half / 2)) for half in range(2 * self.every.bit_length())}
        self._extra = frozenset({step for step in early if step < self.every} | {steps - 1})

    @property
    def records(self) -> int:
        """How many records a finished run has: one for each measured step, and one at the end.

        >>> Schedule(steps=100, points=5, eval_points=2).records
        15
        """
        return len(self._extra.union(range(0, self.steps, self.every))) + 1

    def due(self, step: int, every: int = 1) -> bool:
        """Whether the step is measured; with `every`, by a probe that is due at every n-th of the equally spaced steps.
        The early steps and the last are measured by all."""
        return step % (self.every * every) == 0 or step in self._extra

    def evaluates(self, step: int) -> bool:
        """Whether the test set is evaluated before this (measured) step."""
        return step % self.eval_every == 0


@dataclass(kw_only=True)
class Observer:
    """The probes of one run, with their carries."""

    net: Net
    objective: Objective
    probes: dict[str, Probe]
    probe_batch: Split
    data: Split
    """The training split."""
    test: Split
    schedule: Schedule
    every: Mapping[str, int]
    """By probe: n, if it is due at every n-th of the schedule's regular steps."""
    seed: int
    carries: dict[str, Carry] = field(init=False)
    preserved: PreservedBuffers = field(init=False)

    def __post_init__(self) -> None:
        self.carries = {name: {} for name in self.probes}
        self._before = {name: torch.empty_like(param, requires_grad=False) for name, param in self.net.params.items()}
        self.layouts = {name: layout_of(probe, self.net, self.data.shape) for name, probe in self.probes.items()}
        self.preserved = PreservedBuffers(self.net.module)
        owners = [part for part in self.net.module.modules() if next(part.buffers(recurse=False), None) is not None]
        self._draws = stream(self.seed, "probe", "draws").initial_seed()
        # A training forward moves the running statistics of torch's batch norms, and does not depend on them.
        self._depends_on_buffers = any(type(part) not in BATCH_NORMS for part in owners)

    @torch.no_grad()
    def keep(self, names: list[str]) -> None:
        """Copy the current values of these parameters into existing tensors: a new copy takes four times as long."""
        copy_each([self._before[name] for name in names], [self.net.params[name] for name in names])

    def buffers(self, needs: frozenset[Need]) -> dict[str, Tensor]:
        """The buffers that a training forward starts from now, copied if it depends on them; none where no probe needs
        them."""
        if "before" not in needs and not (self._depends_on_buffers and "probe_sites" in needs):
            return {}
        now = dict(self.net.module.named_buffers())
        return {name: buffer.clone() for name, buffer in now.items()} if self._depends_on_buffers else now

    def before(self, buffers: dict[str, Tensor], random: RandomState | None) -> State:
        """The state with the copied parameters."""
        return State(self._before, buffers, random)

    def on_probe_batch(self, buffers: dict[str, Tensor]) -> Sites:
        """What the sites see of the probe batch, with the draws that are the same at every step."""
        with Tap(self.net) as tap, torch.no_grad():
            torch.manual_seed(self._draws)
            if self._depends_on_buffers:
                outputs_at(self.net.module, State({}, buffers), self.probe_batch.x, "batch")
            else:
                outputs_now(self.net.module, self.probe_batch.x, "batch", self.preserved)
        return tap.sites

    def metrics(self, raw: Mapping[str, Raw], more: Mapping[str, Tensor]) -> Metrics:
        """The measurements of one step: `more`, then the summaries of the probes' raw results. Call it in the order of
        the steps. It makes one transfer from the device."""
        tensors = {(name, key): x for name, part in raw.items() for key, x in part.items()}
        host = to_host({("", name): x for name, x in more.items()} | tensors)
        found = {name: host["", name] for name in more}
        for name, part in raw.items():
            own = {key: host[name, key] for key in part}
            with np.errstate(all="ignore"):  # values that are not finite are null in the journal
                metrics, self.carries[name] = self.probes[name].summarize(own, self.carries[name], *self.layouts[name])
            found |= metrics
        return {name: x[()] for name, x in found.items()}  # a scalar array as a scalar

    def watch(self, step: int, lr: float, batch: Split) -> Watch | Unwatched:
        """Watches one optimizer step, if the schedule measures it."""
        return Watch(self, step, lr, batch, self.net) if self.schedule.due(step) else UNWATCHED


class Unwatched(AbstractContextManager["Unwatched"]):
    """A step on which nothing is measured."""

    def before_update(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Does nothing."""


UNWATCHED = Unwatched()


class Watch(AbstractContextManager["Watch"]):
    """One measured step: the forward runs inside the `with`; call `before_update` after the backward, then `raw`."""

    def __init__(self, observer: Observer, step: int, lr: float, batch: Split, seen: Net | None) -> None:
        """`seen` is the net whose forward is tapped; without one, `training` is to be set."""
        self.observer, self.step, self.lr, self.batch = observer, step, lr, batch
        self.seconds = 0.0
        every, schedule = observer.every, observer.schedule
        self.probes = {name: probe for name, probe in observer.probes.items() if schedule.due(step, every[name])}
        self._needs: frozenset[Need] = frozenset().union(*(probe.needs for probe in self.probes.values()))
        deltas = "delta_norms" in self._needs
        tapped = deltas or "training_sites" in self._needs
        self._tap = TrainingTap(seen, deltas=deltas) if tapped and seen is not None else None
        self.training = TrainingSites()
        self.halves: tuple[Tensor, Tensor] | None = None
        self.probe_sites = Sites()

    def needs(self, need: Need) -> bool:
        """Whether a due probe needs it."""
        return need in self._needs

    @property
    def passes(self) -> bool:
        """Whether a due probe may make a pass through the net."""
        return not all(getattr(probe, "only_reads", False) for probe in self.probes.values())

    def before_forward(self) -> None:
        """Copy what the forward pass may change. To be called where it is not inside the `with`: then `training` is to
        be set after the backward pass, `halves` and `probe_sites` may be, and the net draws no numbers."""
        self._buffers = self.observer.buffers(self._needs)
        self._random: RandomState | None = None

    def __enter__(self) -> Watch:
        self.before_forward()
        self._random = random_state(self.batch.x.device) if "before" in self._needs else None
        if self._tap is not None:
            self._tap.__enter__()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._tap is not None:
            self._tap.__exit__(kind, error, trace)
            self.training = self._tap.training
        now = random_state(self.batch.x.device) if self._random is not None else ()
        if all(torch.equal(one, other) for one, other in zip(self._random or (), now, strict=True)):
            self._random = None  # the forward drew nothing

    def before_update(self) -> None:
        """Copy the parts of the net that the probes need, before the optimizer changes them."""
        start = time.perf_counter()
        observer = self.observer
        if "before" in self._needs:
            observer.keep(list(observer.net.params))
        elif "weights_before" in self._needs:
            observer.keep([site.params[0] for site in observer.net.sites])
        if "probe_sites" in self._needs and not self.probe_sites.pre:
            with untouched_random_state(self.batch.x.device):
                self.probe_sites = observer.on_probe_batch(self._buffers)
        self.seconds += time.perf_counter() - start

    def raw(self) -> dict[str, Raw]:
        """The raw results of the due probes, on the device."""
        start = time.perf_counter()
        observer, schedule = self.observer, self.observer.schedule
        snapshot = Snapshot(
            step=self.step,
            point=None if self.step % schedule.every else self.step // schedule.every,
            lr=self.lr,
            seed=observer.seed,
            net=observer.net,
            objective=observer.objective,
            batch=self.batch,
            training=self.training,
            halves=self.halves,
            before=observer.before(self._buffers, self._random),
            probe=self.probe_sites,
            probe_batch=observer.probe_batch,
            data=observer.data if "training_data" in self._needs else NO_DATA,
            test=observer.test if "test_data" in self._needs else NO_DATA,
        )
        with untouched_random_state(self.batch.x.device):
            raw = {name: probe.measure(snapshot, *observer.layouts[name]) for name, probe in self.probes.items()}
        self._tap, self.training, self.probe_sites = (
            None,
            TrainingSites(),
            Sites(),
        )  # frees the memory before the next forward
        self.seconds += time.perf_counter() - start
        return raw


def first_non_finite_site(net: Net, x: Tensor) -> str | None:
    """The first site at which a forward pass in batch mode has a value that is not finite; None if all are finite."""
    with Tap(net) as tap, untouched_random_state(x.device):
        outputs_now(net.module, x, "batch")
    for site, pre, act_in in zip(net.sites, tap.sites.pre, tap.sites.act_in, strict=True):
        if not bool(torch.isfinite(pre).all() and torch.isfinite(act_in).all()):
            return site.name
    return None


class Recorder:
    """Writes the records of one run to the journal and the board, in batches: 32 at once take a third of the time of 32
    single ones, and wait less often for a GPU."""

    def __init__(
        self,
        folder: RunFolder,
        observer: Observer,
        listen: Callable[[Record], None],
        *,
        keep_bytes: int,
        profile: Profile,
    ) -> None:
        """Keep the first `keep_bytes` bytes of the journal, and rebuild the event file from them. The folder must have
        a spec."""
        self.folder, self.observer, self.listen = folder, observer, listen
        self.write_after_s = WRITE_AFTER_S
        self.seconds = 0.0
        """Spent on measuring, summarizing and writing."""
        self._journal = Journal(folder.journal_file, keep_bytes=keep_bytes)
        schedule = observer.schedule
        self._board = Board(
            folder.path,
            [site.name for site in observer.net.sites],
            extent=Extent(records=schedule.records, steps=schedule.steps),
            profile=profile,
            spec=folder.spec(),
        )
        try:
            self._board.rewrite(read(folder.journal_file))
        except BaseException:
            self._journal.close()
            self._board.close()
            raise
        self._pending: list[tuple[Record, Mapping[str, Tensor], Mapping[str, Raw]]] = []
        self._written = time.monotonic()

    def add(
        self,
        known: Record,
        metrics: Mapping[str, Tensor],
        raw: Mapping[str, Raw] | None = None,
        *,
        seconds: float = 0.0,
    ) -> None:
        """Add one measured step: values on the host (`step`, ...), scalars on the device, and the probes' raw results,
        which took `seconds`."""
        self._pending.append((known | {"wall_s": time.time()}, metrics, raw or {}))
        self.seconds += seconds
        if len(self._pending) >= WRITE_AFTER or time.monotonic() - self._written >= self.write_after_s:
            self.write()

    def write(self) -> None:
        """Write all pending records to the journal and the board, and pass them to the listener."""
        start = time.perf_counter()
        self.folder.refuse_others()
        records: list[Record] = []
        pending, self._pending = self._pending, []
        for known, metrics, raw in pending:
            wall_s = known.pop("wall_s")
            records.append({**known, **self.observer.metrics(raw, metrics), "wall_s": wall_s})
        for record in records:
            self._journal.append(record)
        for record in records:
            self._board.add(record)
        self._journal.flush()
        self._board.flush()
        self._written = time.monotonic()
        self.seconds += time.perf_counter() - start
        for record in records:
            self.listen(record)

    def sync(self) -> int:
        """Write all pending records to the disk; returns the length of the journal."""
        self.write()
        return self._journal.sync()

    @property
    def journal_crc(self) -> int:
        """The checksum of the journal."""
        return self._journal.crc

    def close(self) -> None:
        """Close the journal and the board, after the run's status is written."""
        journal = self.folder.journal_file
        try:
            self._journal.close()
            self.folder.refuse_others()
            self._board.end(self.folder.status(), read(journal), journal.stat().st_size)
        finally:
            self._board.close()
