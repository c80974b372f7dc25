"""One measured step of a loop: its last forward pass, its update, and what the probes make of both."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.state import PreservedBuffers, correct, random_state, set_random_state, untouched_random_state
from bnlab.core.text import listed
from bnlab.data.base import Split
from bnlab.loop import described
from bnlab.loop.twin import KEY, Twin, versions
from bnlab.net.wrap import HALF, TrainingTap
from bnlab.probes.base import HasLess, Need, Probe, Raw
from bnlab.run.observe import Observer, Watch

Note = Callable[[str], None]
Inputs = str | Callable[..., Tensor]
"""Where the batch is in what a model is called with: a keyword, or a function of all of it."""
OF_LOSS: frozenset[Need] = frozenset({"before", "halves"})
NEAR, NEAR_IN_HALF = 1e-3, 0.05
"""Relative differences up to which two passes from one state give the same: in full precision, and under autocast."""


class MeasuredStep:
    """The step `step`, of which a loop calls `before_forward` to `metrics` in this order; the first two at each of its
    forward passes, of which the last counts."""

    def __init__(self, step: int, observer: Observer, twin: Twin, note: Note, *, compare: bool) -> None:
        """`compare`: see that a pass in the copy gives what the model gave."""
        self.compare = compare
        self.step, self.observer, self.twin, self.note = step, observer, twin, note
        self.forwards, self.updated, self.lr, self.seconds = 0, False, math.nan, 0.0
        self._open: ExitStack | None = None
        """What holds during a tapped forward pass."""

    def before_forward(self, x: Tensor) -> None:
        """`x` is what the model was called with."""
        start = time.perf_counter()
        self.give_up()
        self.forwards += 1
        # A copy: a loop may write its next batch into the same tensor.
        self._x, self._precision, self._drawn = x.detach().clone(), autocast_of(x.device), random_state(x.device)
        self._watch = Watch(self.observer, self.step, math.nan, Split(self._x, self._x), self.twin.watched)
        self._again = self.compare or self.twin.watched is None
        self.twin.before_forward(passes=self._again or self._watch.passes)
        self.versions = versions(self.twin.given)
        self._open = ExitStack()
        self._open.enter_context(self.twin.nothing_in_place())
        self._open.enter_context(self._watch)
        self.seconds += time.perf_counter() - start

    def after_forward(self, output: Any) -> None:
        """`output` is what the model returned."""
        if self._open is None:
            return
        start = time.perf_counter()
        opened, self._open = self._open, None
        opened.close()
        self._outputs, self._deltas = list(_floats(output)), dict[int, Tensor]()
        if self.twin.watched is None:
            for index, one in enumerate(self._outputs):
                if one.requires_grad:
                    one.register_hook(partial(self._deltas.__setitem__, index))  # type: ignore[no-untyped-call]
        self.seconds += time.perf_counter() - start

    def give_up(self) -> None:
        """End a forward pass that an error left."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.__exit__(RuntimeError, None, None)

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy weights and gradients.

        Raises:
            UsageError: a pass in the copy does not give what the model gave.
        """
        start = time.perf_counter()
        self.updated, self.lr = True, described.rate_of(optimizer)
        self.twin.before_update(getattr(optimizer, "grad_scale", None))  # of a fused optimizer, which unscales itself
        scale = _loss_scale()
        with measuring(self._x.device):
            if self._again:
                self._computed_again()
            for norm in self._watch.training.delta_norms.values() if scale != 1 else ():
                norm.div_(scale)
            self._watch.before_update()
        self.seconds += time.perf_counter() - start - self._watch.seconds

    def _computed_again(self) -> None:
        """The training pass once more, in the copy: to compare, and to look inside of what is compiled."""
        net, looks_inside, compare = self.twin.net, self.twin.watched is None, self.compare
        deltas = looks_inside and self._watch.needs("delta_norms")
        tap = TrainingTap(net, deltas=deltas)
        half = self._precision
        with PreservedBuffers(net.module), torch.enable_grad(), untouched_random_state(self._x.device):
            set_random_state(self._drawn, self._x.device)
            with torch.autocast(self._x.device.type, half or HALF[0], half is not None, cache_enabled=False), tap:
                out: Tensor = net.module(self._x)
            alike = [index for index, one in enumerate(self._outputs) if one.shape == out.shape]
            if compare and not alike:
                problem = f"no output of a forward has the shape of what is measured, {list(out.shape)}"
                raise UsageError(KEY, problem, remedy="Return tensors, or let call= return one of them.")
            if compare and not any(
                _alike(self._outputs[index], out, NEAR_IN_HALF if half else NEAR) for index in alike
            ):
                remedy = "Draw from torch's global generator, and keep in buffers what a forward changes."
                if looks_inside:
                    remedy = "torch.compile draws dropout in its own way: watch the model without it."
                raise UsageError(KEY, "a forward from the same state gives other outputs", remedy=remedy)
            if looks_inside:
                gradient = next((self._deltas[index] for index in alike if index in self._deltas), None)
                if deltas and gradient is not None:
                    torch.autograd.grad(out, list(net.params.values()), gradient.to(out.dtype), allow_unused=True)
                self._watch.training = tap.training

    def metrics(self, loss: Tensor | float | None, y: Any) -> tuple[dict[str, Tensor], dict[str, Raw]]:
        """Loss and accuracy of the step, and the raw results of the probes, after the update."""
        start = time.perf_counter()
        self.twin.after_update()
        x, watch = self._x, self._watch
        known = isinstance(y, Tensor) and y.shape[:1] == x.shape[:1]
        watch.lr, watch.batch = self.lr, Split(x, y if known else torch.zeros(len(x), device=x.device))
        if not known:
            for probes in (watch.probes, self.observer.probes):
                leave_out(probes, OF_LOSS, "lab.step() has no targets y", self.note)
        if self.forwards > 1:
            last = "batch moments, delta_norm and losses of probes of the last"
            self.note(f"several forward passes in a step: gradients are those of all, {last}")
        found = {}
        if loss is not None:
            found["train_loss"] = torch.as_tensor(loss).detach().to(x.device, torch.float32, copy=True)
        for out in self._outputs if known and y.dtype == torch.int64 and y.ndim == 1 else ():
            if out.ndim == 2 and len(out) == len(y):
                found["train_accuracy"] = correct(out.detach(), y) / len(y)
        self.seconds += time.perf_counter() - start
        with measuring(x.device):
            raw = watch.raw()
        self.seconds += watch.seconds
        return found, raw


def batch_of(inputs: Inputs | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The batch in what a model is called with: what `inputs` makes of it, the keyword `inputs`, or the first tensor.

    Raises:
        UsageError: there is none.
    """
    if callable(inputs):
        given = [inputs(*args, **kwargs)]
    else:
        given = [kwargs[inputs]] if inputs is not None and inputs in kwargs else [*args, *kwargs.values()]
    x = next((one for one in given if isinstance(one, Tensor)), None)
    if x is None:
        raise UsageError(KEY, "is called without a tensor", remedy="Call it with a batch, and say how by call=.")
    return x


def leave_out(probes: dict[str, Probe], needs: frozenset[Need], why: str, note: Note) -> None:
    """Remove the probes, or what of them can be left out, that need one of `needs`, and say so."""
    gone = [name for name, probe in probes.items() if probe.needs & needs]
    for name in gone:
        probe = probes.pop(name)
        if isinstance(probe, HasLess) and not (less := probe.without_losses()).needs & needs:
            probes[name] = less
    if gone:
        note(f"{why}, so not measured, or in part: {listed(gone)}")


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Inside the `with`, everything is computed in full precision, by the parts that are measured and not by kernels
    that take several together; the random state stays."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.autocast(device.type, enabled=False), untouched_random_state(device):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def autocast_of(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, where it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _floats(output: Any) -> Iterator[Tensor]:
    """The tensors of floats in what a forward returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | list | tuple):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _floats(value)


def _alike(given: Tensor, computed: Tensor, near: float) -> bool:
    given, computed = given.detach().float(), computed.detach().float()
    largest = computed[computed.isfinite()].abs().max() if bool(computed.isfinite().any()) else 1.0
    return torch.allclose(given, computed, rtol=near, atol=near * float(largest), equal_nan=True)


def _loss_scale() -> float:
    """By how much a GradScaler, if one makes this update, has multiplied the loss. It is found among the callers, since
    a loop has no other place where it must be named."""
    frame = inspect.currentframe()
    while frame is not None:
        if "step" in frame.f_code.co_name and isinstance(found := frame.f_locals.get("self"), torch.amp.GradScaler):
            return float(found.get_scale())
        frame = frame.f_back
    return 1.0
