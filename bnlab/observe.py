"""Runs the due probes without touching the run.

What the probes of a run need is gathered once per measured step: hooks are attached for that step's forward alone, the
state before the update is copied, the probe batch goes through the net with copies of its buffers, and all figures cross
to the host in one transfer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnlab.data.base import Split
from bnlab.models.base import Net
from bnlab.probes.base import Carry, Metrics, Need, Probe, Sites, Snapshot, Tap
from bnlab.state import Objective, State, outputs_now


class Schedule:
    """Which steps of a run are measured, and at which of those the test set is evaluated.

    `points` steps at equal distance, from step 0; between step 0 and the second of them also a few early ones, each about
    1.4 times the one before, since most happens there; and the last step.

    >>> [step for step in range(100) if Schedule(steps=100, points=5, eval_points=2).due(step)]
    [0, 1, 2, 3, 4, 6, 8, 11, 16, 20, 40, 60, 80, 99]
    """

    def __init__(self, *, steps: int, points: int, eval_points: int) -> None:
        self.every = max(1, steps // points)
        self.eval_every = self.every * max(1, round(steps / self.every / eval_points))
        early = {round(2 ** (half / 2)) for half in range(2 * self.every.bit_length())}
        self._extra = frozenset({step for step in early if step < self.every} | {steps - 1})

    def due(self, step: int) -> bool:
        """Whether the step is measured."""
        return step % self.every == 0 or step in self._extra

    def evaluates(self, step: int) -> bool:
        """Whether the test set is evaluated before this (measured) step."""
        return step % self.eval_every == 0


class Observer:
    """The probes of one run and what they remember."""

    def __init__(self, net: Net, objective: Objective, probes: Mapping[str, Probe], probe_batch: Split) -> None:
        self.net, self.objective, self.probes, self.probe_batch = net, objective, dict(probes), probe_batch
        self.needs: frozenset[Need] = frozenset().union(*(probe.needs for probe in probes.values()))
        self.carries: dict[str, Carry] = {name: {} for name in probes}

    def watch(self, step: int, lr: float, batch: Split) -> Watch:
        """Watches one optimizer step."""
        return Watch(self, step, lr, batch)


class Unwatched(AbstractContextManager["Unwatched"]):
    """A step on which nothing is measured."""

    def before_update(self) -> None:
        """Nothing."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Nothing."""


UNWATCHED = Unwatched()


class Watch(AbstractContextManager["Watch"]):
    """One measured step: enter before the forward, `before_update` after the backward, `metrics` after the update."""

    def __init__(self, observer: Observer, step: int, lr: float, batch: Split) -> None:
        self.observer, self.step, self.lr, self.batch = observer, step, lr, batch
        self.seconds = 0.0
        needs = observer.needs
        gradients = "pre_gradients" in needs
        self._tap = Tap(observer.net, gradients=gradients) if gradients or "training_sites" in needs else None
        self._before = State({}, {})
        self._probe_sites = Sites()

    def __enter__(self) -> Watch:
        if self._tap is not None:
            self._tap.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._untap()

    def _untap(self) -> None:
        if self._tap is not None:
            self._tap.__exit__(None, None, None)

    def before_update(self) -> None:
        """Keep what the probes need of the net before the optimizer changes it."""
        start = time.perf_counter()
        self._untap()
        observer = self.observer
        with untouched_random_state(self.batch.x.device):
            if "before" in observer.needs:
                self._before = State.of(observer.net.module)
            if "probe_sites" in observer.needs:
                with Tap(observer.net) as tap, torch.no_grad():
                    outputs_now(observer.net.module, observer.probe_batch.x, "batch")
                self._probe_sites = tap.seen
        self.seconds += time.perf_counter() - start

    def metrics(self) -> Metrics:
        """Every probe's figures, on the device."""
        start = time.perf_counter()
        observer = self.observer
        snapshot = Snapshot(
            step=self.step,
            lr=self.lr,
            net=observer.net,
            objective=observer.objective,
            batch=self.batch,
            training=self._tap.seen if self._tap is not None else Sites(),
            before=self._before,
            probe=self._probe_sites,
        )
        found: Metrics = {}
        with untouched_random_state(self.batch.x.device):
            for name, probe in observer.probes.items():
                metrics, observer.carries[name] = probe.measure(snapshot, observer.carries[name])
                found |= metrics
        self.seconds += time.perf_counter() - start
        return found


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """The global random state as it was: a module that draws from it must not draw otherwise for being measured."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def to_host(metrics: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every figure as a numpy scalar or vector, in one transfer."""
    if not metrics:
        return {}
    flat: np.ndarray[Any, Any] = torch.cat([x.detach().reshape(-1) for x in metrics.values()]).cpu().numpy()
    host: dict[str, Any] = {}
    start = 0
    for name, x in metrics.items():
        end = start + math.prod(x.shape)
        host[name] = flat[start] if x.ndim == 0 else flat[start:end]
        start = end
    return host


def first_non_finite_site(net: Net, x: Tensor) -> str | None:
    """The first site at which a forward in batch mode shows a value that is not finite; None if all are finite."""
    with Tap(net) as tap, torch.no_grad(), untouched_random_state(x.device):
        outputs_now(net.module, x, "batch")
    for site, pre, act_in in zip(net.sites, tap.seen.pre, tap.seen.act_in, strict=True):
        if not bool(torch.isfinite(pre).all() and torch.isfinite(act_in).all()):
            return site.name
    return None
