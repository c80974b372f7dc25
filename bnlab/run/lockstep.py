"""Several runs in one process, one step of each at a time: their nets and optimizers are computed as one stack.

Every run has the bits, the files and the measurements that it has alone. While it is in the stack, its parameters,
buffers and optimizer state are parts of the stack's tensors, where probes, evaluations and checkpoints find them. A run
that ends leaves its place, and the next one takes it, at whatever step that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from bnlab.core.registry import OPTIMIZERS
from bnlab.net._stacked_norms import Forward, Tensors
from bnlab.net.stack import Stack, apart, losses_of, unstackable
from bnlab.net.wrap import SavedMoments, Sites, TrainingSites
from bnlab.optim._together import Together, together
from bnlab.run.observe import WRITE_AFTER_S, Watch
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import Run, Status, Turn

LARGEST, BYTES = 32, 8 * 2**20
"""`launch.lockstep=auto`: at most so many nets, and so many bytes of parameters, which a cache holds."""
PROVED_STEPS = 2

Key = TypeVar("Key")
Stopped = Callable[[], str | None]


@dataclass(slots=True, eq=False)
class Member(Generic[Key]):
    """A run in a stack. Closing `closing` closes the run and releases its folder."""

    key: Key
    run: Run
    closing: ExitStack
    seconds: float = 0.0
    turn: Turn | None = None
    result: Status | Exception | None = None
    """Its final status or its error, once there is one."""


def alone_because(setup: Setup) -> str | None:
    """Why a run cannot be in a stack; None if it can."""
    if setup.spec.device != "cpu":
        return f"device={setup.spec.device}"
    if setup.spec.precision != "float32":
        return f"precision={setup.spec.precision}"
    own = OPTIMIZERS.entry(setup.spec.optim.name).constructor.__module__.startswith("bnlab.optim.")
    if not own or together(setup.optimizer) is None:
        return f"optim={setup.spec.optim.name}"
    return unstackable(setup.net)


def places(setup: Setup, wanted: int | str) -> int:
    """How many nets make a stack."""
    if wanted != "auto":
        return int(wanted)
    size = sum(param.nbytes for param in setup.net.module.parameters())
    return max(1, min(LARGEST, BYTES // size))


def kind_of(setup: Setup) -> Hashable:
    """What the runs of one stack have in common. The rest is data to a step."""
    spec, net, group = setup.spec, setup.net, setup.optimizer.param_groups[0]
    settings = {key: value for key, value in group.items() if key not in ("params", "lr", "momentum", "weight_decay")}
    used = [bool(group.get(key)) for key in ("momentum", "weight_decay")]
    parts = [str(part) for part in net.module.modules() if not isinstance(part, nn.Sequential)]
    shapes = [tuple(param.shape) for param in net.module.parameters()]
    data = (setup.dataset.input_shape, setup.batches.size, spec.loss, spec.reduction, spec.dtype)
    orders = [(site.name, site.norm_first) for site in net.sites]
    return str((type(setup.optimizer), settings, used, parts, shapes, data, orders, sorted(spec.norm.options.items())))


class Lockstep(Generic[Key]):
    """Runs of one kind in the places of a stack."""

    def __init__(self, like: Setup, size: int) -> None:
        """`like`: one of the runs; `size`: the number of places."""
        self.size, self.kind, self.objective = size, kind_of(like), like.objective
        self.stack = Stack(like.net)
        self.members: list[Member[Key]] = []
        module = like.net.module

        def empty(x: Tensor) -> Tensor:
            return apart(size, x.shape, x.dtype, x.device)

        self.params = {name: empty(x) for name, x in module.named_parameters()}
        self.buffers = {name: empty(x) for name, x in module.named_buffers()}
        kind = together(like.optimizer)
        assert kind is not None
        self.optimizers: Together = kind(self.params, like.optimizer, lambda x: empty(x[0]))
        self._x = empty(torch.empty(like.batches.size, *like.dataset.input_shape, dtype=module_dtype(module)))

    def join(self, member: Member[Key]) -> None:
        """Put a run into the next place."""
        place, run = len(self.members), member.run
        self.members.append(member)
        for name, x in run.module.state_dict(keep_vars=True).items():
            self._stacked(name)[place].copy_(x.detach())
        self.optimizers.enter(run.setup.optimizer)
        self._show(place)
        self.stack.of([member.run.setup.net for member in self.members])
        run.seconds = lambda: member.seconds
        run.random = torch.get_rng_state()
        run.recorder.write_after_s = WRITE_AFTER_S * self.size

    def leave(self, member: Member[Key]) -> None:
        """Give a run tensors of its own. The run in the last place takes its place."""
        place, last = self.members.index(member), len(self.members) - 1
        _replace(member.run.module, lambda name, x: x.clone())
        self.optimizers.leave(place)
        if place != last:
            for x in (*self.params.values(), *self.buffers.values()):
                x[place].copy_(x[last])
            self.members[place] = self.members[last]
            self._show(place)
        del self.members[last]
        self.stack.of([member.run.setup.net for member in self.members])

    def step(self, stopped: Stopped) -> list[Member[Key]]:
        """One step of every run. Returns the runs that have ended, out of the stack, with their results."""
        started, members = time.perf_counter(), list(self.members)
        before = sum(member.seconds for member in members)
        for member in members:
            self._own(member, lambda run, member=member: self._turn(member, stopped))  # type: ignore[misc]
        ended = self._without_ended()
        if self.members:
            self._train()
            ended += self._without_ended()
        own = sum(member.seconds for member in members) - before
        for member in self.members:
            member.seconds += (time.perf_counter() - started - own) / len(self.members)
        return ended

    def _own(self, member: Member[Key], work: Callable[[Run], object]) -> None:
        """Do what belongs to one run: its error is its own."""
        started = time.perf_counter()
        try:
            work(member.run)
        except (Exception, SystemExit) as error:
            member.result = error_of(error)
        member.seconds += time.perf_counter() - started

    def _turn(self, member: Member[Key], stopped: Stopped) -> None:
        found = member.run.turn(stopped)
        if isinstance(found, Turn):
            member.turn = found
        else:
            member.result = found

    def _train(self) -> None:
        members = self.members
        turns = [member.turn for member in members if member.turn is not None]
        for member in members:
            member.run.progress.nets = max(member.run.progress.nets, len(members))
        watched = {place: turn.watch for place, turn in enumerate(turns) if isinstance(turn.watch, Watch)}
        for watch in watched.values():
            watch.before_forward()
        buffers = {name: x.clone() for name, x in self._active(self.buffers).items()} if watched else {}
        done = self._forward([turn.batch.x for turn in turns])
        losses, gradient = losses_of(done.outputs, [turn.batch.y for turn in turns], self.objective)
        for member, turn, loss in zip(members, turns, losses, strict=True):
            self._own(member, lambda run, own=(member, turn, loss): _settle(*own))  # type: ignore[misc]
        deltas = any(watch.needs("delta_norms") for watch in watched.values())
        grads = self.stack.backward(self._active(self.params), done, gradient, keep=deltas)
        norms = [vector_norm(delta.contiguous(), dim=(1, 2)) for delta in done.deltas] if watched else []
        self._see_halves(watched, turns, buffers)
        self._see_probe_batches(watched, buffers)
        for place, watch in watched.items():
            if members[place].result is None:
                params = members[place].run.setup.observer.net.params
                for name, param in params.items():
                    param.grad = grads[name][place]
                watch.training = _training(done, norms if watch.needs("delta_norms") else [], place)
                self._own(members[place], lambda run, watch=watch: watch.before_update())  # type: ignore[misc]
        self.optimizers.step(grads)
        for place, (member, turn) in enumerate(zip(members, turns, strict=True)):
            if member.result is None:
                out = (turn, done.outputs[place], losses[place])
                self._own(member, lambda run, out=out: run.record(*out))  # type: ignore[misc]

    def _see_halves(self, watched: Mapping[int, Watch], turns: Sequence[Turn], buffers: Tensors) -> None:
        """The gradients of the two halves of every net's batch, if all nets need them. Else each computes its own."""
        needing = [watch for watch in watched.values() if watch.needs("halves")]
        if len(needing) < len(self.members):
            return
        params, x, half = self._active(self.params), self._x[: len(turns)], len(turns[0].batch) // 2
        found = []
        for part in (slice(0, half), slice(half, None)):
            targets = [turn.batch.y[part] for turn in turns]
            _, grads = self.stack.gradients(params, buffers, x[:, part], targets, self.objective)
            found.append(torch.cat([grads[name].flatten(1) for name in params], dim=1))
        for place, watch in enumerate(needing):
            watch.halves = (found[0][place], found[1][place])

    def _see_probe_batches(self, watched: Mapping[int, Watch], buffers: Tensors) -> None:
        """What the sites see of every net's probe batch, from the buffers before the training forward; if all nets
        need it. Else each computes its own."""
        needing = [watch for watch in watched.values() if watch.needs("probe_sites")]
        batches = [watch.observer.probe_batch.x for watch in needing]
        if len(needing) < len(self.members) or len({x.shape for x in batches}) > 1:
            return
        done = self.stack.forward(self._active(self.params), buffers, torch.stack(batches), backward=False)
        for place, watch in enumerate(needing):
            watch.probe_sites = Sites(pre=[x[place] for x in done.pre], act_in=[x[place] for x in done.act_in])

    def _forward(self, inputs: list[Tensor]) -> Forward:
        for place, x in enumerate(inputs):
            self._x[place].copy_(x)
        return self.stack.forward(self._active(self.params), self._active(self.buffers), self._x[: len(inputs)])

    def proved(self) -> bool:
        """Whether the stack, as it is now, computes what a net alone computes, bit by bit: the last place's net trains
        a few steps beside the stack, which is afterwards as before."""
        before = [(x, x.clone()) for x in self._tensors()]
        setups = [member.run.setup for member in self.members]
        steps, place = [member.run.step for member in self.members], len(self.members) - 1
        kept = list(self.optimizers.steps)
        alone = assemble(setups[place].spec)
        alone.net.module.load_state_dict(setups[place].net.module.state_dict())
        alone.optimizer.load_state_dict(setups[place].optimizer.state_dict())
        equal = True
        for more in range(PROVED_STEPS):
            batches = [setup.batches.at(step + more) for setup, step in zip(setups, steps, strict=True)]
            for setup, step in zip([*setups, alone], [*steps, steps[place]], strict=True):
                setup.set_rates(step + more)
            done = self._forward([batch.x for batch in batches])
            losses, gradient = losses_of(done.outputs, [batch.y for batch in batches], self.objective)
            self.optimizers.step(self.stack.backward(self._active(self.params), done, gradient))
            loss = self.objective(alone.net.module(batches[place].x), batches[place].y)
            alone.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            alone.optimizer.step()
            equal &= torch.equal(loss.detach(), losses[place])
        for name, x in alone.net.module.state_dict().items():
            equal &= torch.equal(x, self._stacked(name)[place])
        for x, was in before:
            x.copy_(was)
        self.optimizers.rewind(kept)
        return equal

    def _tensors(self) -> Iterator[Tensor]:
        yield from (*self.params.values(), *self.buffers.values())
        for stacked in self.optimizers.state.values():
            yield from stacked.values()

    def _stacked(self, name: str) -> Tensor:
        return self.params[name] if name in self.params else self.buffers[name]

    def _active(self, tensors: Tensors) -> Tensors:
        count = len(self.members)
        return tensors if count == self.size else {name: x[:count] for name, x in tensors.items()}

    def _show(self, place: int) -> None:
        """Let the net in a place have the stack's tensors as its own."""
        _replace(self.members[place].run.module, lambda name, x: self._stacked(name)[place])

    def _without_ended(self) -> list[Member[Key]]:
        ended = [member for member in self.members if member.result is not None]
        for member in ended:
            self.leave(member)
        return ended


def _settle(member: Member[Any], turn: Turn, loss: Tensor) -> None:
    member.result = member.run.diverged(turn, loss)


def module_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


@torch.no_grad()
def _replace(module: nn.Module, by: Callable[[str, Tensor], Tensor]) -> None:
    """Replace every parameter's and buffer's tensor; the parameters stay the same objects."""
    for prefix, part in module.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, param in part.named_parameters(recurse=False):
            param.data = by(start + name, param.data)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, by(start + name, buffer))


def _training(done: Forward, norms: Sequence[Tensor], place: int) -> TrainingSites:
    """What the training pass computed for the net in a place; `norms`: of the gradients at pre, each [K]."""
    pre: list[SavedMoments | Tensor] = [
        pre[place] if saved is None else SavedMoments(saved.mean[place], saved.inverse_sd[place])
        for pre, saved in zip(done.pre, done.saved, strict=True)
    ]
    return TrainingSites(pre=pre, delta_norms={index: norm[place] for index, norm in enumerate(norms)})


_PROVED: dict[Hashable, bool] = {}
"""By kind: whether this process has seen a stack keep the bits."""


def train_together(
    first: Member[Key], size: int, more: Callable[[], Member[Key] | None], stopped: Stopped
) -> Iterator[Member[Key]]:
    """Train runs in a stack of `size` places, and yield each when it has ended, with its result. `more` gives the next
    run, or None; one of another kind trains alone, and so does a run that is left over, or whose stack does not keep
    the bits."""
    stack: Lockstep[Key] = Lockstep(first.run.setup, size)
    others: list[Member[Key]] = []
    following: Member[Key] | None = first
    while True:
        while following is not None:
            try:
                following.run.begin()
            except Exception as error:
                following.result = error
                yield closed(following)
                following = more()
                continue
            if kind_of(following.run.setup) == stack.kind:
                stack.join(following)
            else:
                others.append(following)
            following = more() if len(stack.members) < size else None
        if len(stack.members) < 2:
            break
        if stack.kind not in _PROVED:
            _PROVED[stack.kind] = stack.proved()
        if not _PROVED[stack.kind]:
            break
        for member in stack.step(stopped):
            yield closed(member)
        following = more() if len(stack.members) < size else None
    for member in list(stack.members):
        stack.leave(member)
        if not _PROVED.get(stack.kind, True):
            member.run.folder.log("trained alone: on this machine a stack of such nets has other bits")
        others.append(member)

    def stopped_while_others_wait() -> str | None:
        for waiting in others:
            waiting.run.beat()  # they have an owner
        return stopped()

    while others:
        yield closed(go_on_alone(others.pop(0), stopped_while_others_wait))
    while (left := more()) is not None:
        yield closed(go_on_alone(left, stopped, begin=True))


def go_on_alone(member: Member[Key], stopped: Stopped, *, begin: bool = False) -> Member[Key]:
    """Train a run that has begun, or begins here."""
    before, started = member.seconds, time.monotonic()
    if member.run.random is not None:
        torch.set_rng_state(member.run.random)
        member.run.random = None
    member.run.seconds = lambda: before + time.monotonic() - started
    try:
        if begin:
            member.run.begin()
        member.result = member.run.go_on(stopped)
    except (Exception, SystemExit) as error:
        member.result = error_of(error)
    return member


def error_of(error: BaseException) -> Exception:
    """The error of a run whose code may have called `sys.exit`."""
    return error if isinstance(error, Exception) else RuntimeError(f"its code called sys.exit({error})")


def closed(member: Member[Key]) -> Member[Key]:
    """The member with its folder released; an error is now what closing makes of it."""
    error = member.result if isinstance(member.result, Exception) else None
    try:
        member.closing.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
    except Exception as found:
        member.result = found
    return member
