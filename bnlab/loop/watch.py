"""`bnlab.watch`: the probes, the journal and the dashboards around a training loop that is the user's own.

On a measured step, the forward pass is tapped, weights and gradients are copied as the optimizer is about to use them,
and passes for measuring are made in a copy of the net. On every other step nothing is attached to the net.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError, cause
from bnlab.core.state import Objective
from bnlab.core.text import command
from bnlab.data.base import Split
from bnlab.grids.run import digests
from bnlab.loop import described
from bnlab.loop.kept import Kept
from bnlab.loop.measured import OF_LOSS, Inputs, MeasuredStep, autocast_of, batch_of, leave_out, measuring
from bnlab.loop.twin import Call, Hook, Twin, unwrapped, versions
from bnlab.probes.base import HasSplits
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read
from bnlab.run.observe import Observer, Schedule
from bnlab.run.setup import probes_of

FEWEST = 4
"""Examples in a probe batch."""
OWN_NAMES = ("step", "lr", "wall_s")
OF_BATCHES = ("train_loss", "train_accuracy")
"""What the journal has of each batch: logged values of these names are final metrics alone."""


class MeasuringWarning(UserWarning):
    """Something is not measured; the training that is watched goes on."""


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    name: str,
    steps: int,
    loss: Objective | None = None,
    probes: str | Sequence[str] = "economy",
    probe_batch: Tensor | None = None,
    sites: Mapping[str, tuple[str, str, str]] | None = None,
    inputs: Inputs | None = None,
    call: Call | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    arm: str | None = None,
    claims: Path | str | None = None,
    runs: Path | str = "runs",
    fresh: bool = False,
) -> Lab:
    """Watch a training loop: inside the `with`, `lab.step(loss, x, y)` ends each step, after `optimizer.step()`.

    The training is bit for bit what it is without it: weights, buffers, optimizer and random state. A measurement that
    fails ends the watching with a warning, never the training.

    Args:
        model: the module that the loop calls, also in torch.compile or DistributedDataParallel. Measured are passes of
            `model(x)` in training mode, with a gradient; of several in one step, the last one.
        optimizer: its `step()` is the update; gradients are measured as it has them, after clipping and unscaling.
        name: of the folder of the run, `runs/NAME/ARM/lr=.../seed=...`.
        steps: how many there will be. Measured are `probes.points` of them at equal distance, and a few more at the
            start. Later steps are not measured.
        loss: of outputs and targets, a scalar. Probes that compute losses of their own need it.
        probes: a group of configs/probes, or a list of it and overrides: `["standard", "probes.points=50"]`.
        probe_batch: [N, ...], the examples on which distributions are measured; without it, the first batch.
        sites: the blocks, {name: (affine, norm, activation)} by the paths of their parts; without it, they are found.
        inputs: the keyword of the batch among what the model is given, or a function of all of that, to one tensor;
            without it, the first tensor.
        call: how one batch goes through the model to one tensor, if not by `model(x)`:
            `lambda net, x: net(pixel_values=x).logits`.
        data: all training inputs and targets, for probes of the population's statistics.
        seed: that of the loop, by which runs of two arms are paired.
        arm: what is compared; without it, the kind of the norms in the model.
        claims: a YAML with `claims` as in a study, which reports of `runs/NAME` judge.
        runs: the folder that run folders are written to.
        fresh: replace a run that has ended.

    Raises:
        UsageError: nothing in the model can be measured, or a wrong argument.
    """
    given = {**locals()}
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Lab(model, optimizer, given, active=not distributed or torch.distributed.get_rank() == 0)


class Lab(AbstractContextManager["Lab"]):
    """One watched run. In a process of a distributed training that is not the first one, it does nothing."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, given: Mapping[str, Any], *, active: bool
    ) -> None:
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # of accelerate
        self._model, self._optimizer, self._given = model, optimizer, given
        self.active = active
        """Whether it measures, or will."""
        self.notes: list[str] = []
        """What there is to know about the measurements, each said once."""
        self._step, self._compare = 0, True
        self._unchanged = False
        """Whether the last step ended without an update, and no forward pass began since."""
        self._now: MeasuredStep | None = None
        self._handles: list[Any] = []
        self._twin: Twin | None = None
        self._observer: Observer | None = None
        self._kept: Kept | None = None
        self._logged: dict[str, float] = {}
        if active:
            self._check()

    @property
    def path(self) -> Path | None:
        """The folder of the run, from the first forward pass on."""
        return None if self._kept is None else self._kept.folder.path

    def __enter__(self) -> Lab:
        self._attach()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._detach()
        if self.active and error is None and (self._kept is None or not self._step):
            uncalled, unended = "the model was not called in training mode", "no step ended with lab.step(loss, x, y)"
            self._warn(f"nothing was measured: {uncalled if self._step else unended}")
        if self.active:
            fine = error is None and self._step
            ended = "finished" if fine else "interrupted" if error and not isinstance(error, Exception) else "failed"
            self._end(ended, error)
        self.active = False

    def step(self, loss: Tensor | float | None, x: Tensor | None = None, y: Any = None) -> None:
        """End a step of the loop, after `optimizer.step()`. `loss` is that of the step, None if it is not known, `y`
        its targets. `x` is there to be read by people: what is measured is what the model was called with."""
        if self.active and self._handles:
            self._detach()
            with self._guarded():
                self._measure(loss, y)
        self._step += 1
        if not self.active:
            return
        if self._kept is not None and self._kept.is_silent:
            with self._guarded():
                self._kept.beat()
        if self._step <= self._schedule.steps:
            self._attach()
        elif self._step == self._schedule.steps + 1:
            self.note(f"the loop makes more than steps={self._schedule.steps}: the others are not measured")

    def log(self, **values: float | Tensor) -> None:
        """Note measurements of the loop's own, such as `test_accuracy=0.97`, at the weights of now. The last value of
        each is a final metric of the run."""
        for name, value in values.items():
            if name in OWN_NAMES or isinstance(value, str | bool) or not hasattr(value, "__float__"):
                raise UsageError(name, "cannot be logged", value, "Give a number, and another name.")
            self._logged[name] = float(value.detach() if isinstance(value, Tensor) else value)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)
            if self._kept is not None and self.active:
                with suppress(OSError, UsageError):  # of a folder that is gone: the next record says so
                    self._kept.folder.log(text)

    def summary(self) -> str:
        """How the run went, as `bnlab train` prints it, and the notes."""
        from bnlab.terminal.summary import show_summary

        if self.path is None:
            return "nothing was measured"
        out, folder = io.StringIO(), RunFolder(self.path)
        following = command("bnlab", "view", str(Path(self._given["runs"]) / self._given["name"]))
        show_summary(folder.status(), self.path, list(read(folder.journal_file)), following, out)
        return "\n".join([out.getvalue().rstrip(), *(f"note: {note}" for note in self.notes)])

    def _check(self) -> None:
        """Raises UsageError for what can be known before the first step."""
        given = self._given
        described.refuse_arguments(given, self._model, self._optimizer)
        self._study = described.study_of(given["name"], given["claims"])
        probes = described.probes_spec(given["probes"], FEWEST)
        self._schedule = Schedule(steps=given["steps"], points=probes.points, eval_points=probes.eval_points)
        if given["probe_batch"] is not None:
            self._look_into(given["probe_batch"])

    def _look_into(self, batch: Any) -> None:
        """Make the copy of the model, and find its sites."""
        if not isinstance(batch, Tensor) or batch.ndim < 1 or len(batch) < FEWEST:
            shape = list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise UsageError("probe_batch", f"must be a tensor of at least {FEWEST} examples", shape)
        device = next(self._model.parameters()).device
        self._probe_batch = batch[: len(batch) // 2 * 2].detach().to(device, copy=True)
        with measuring(device):
            self._twin = Twin(self._model, self._probe_batch, self._given["sites"], self._given["call"])

    # Hooks are attached on measured steps alone.

    def _attach(self) -> None:
        if self.active and self._step < self._schedule.steps and self._schedule.due(self._step):
            self._handles = [
                self._model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True),
                # First of all, so that two labs take off their taps in the inverse order; also where a forward fails.
                self._model.register_forward_hook(Hook(self._after_forward), prepend=True, always_call=True),
                self._optimizer.register_step_pre_hook(self._before_update),
            ]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._now is not None:
            self._now.give_up()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled() or (self._now is not None and self._now.updated):
            return
        self._unchanged = False
        if self._kept is None:
            try:
                self._begin(batch_of(self._given["inputs"], args, kwargs))
            except BaseException as error:
                self._detach()
                self.active = False  # a loop that goes on after it is not stopped again
                if isinstance(error, OSError):
                    raise UsageError("runs", str(error.strerror).lower(), str(self._given["runs"])) from error
                if isinstance(error, UsageError) or not isinstance(error, Exception):
                    raise
                self._warn(f"nothing is measured, the training goes on: {cause(error)}")
                return
        with self._guarded():
            if self._now is None:
                assert self._observer is not None
                assert self._twin is not None
                self._now = MeasuredStep(self._step, self._observer, self._twin, self.note, compare=self._compare)
            self._now.before_forward(batch_of(self._given["inputs"], args, kwargs))

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """`output` is None where the forward failed."""
        if self._now is None:
            return
        if output is None:
            self._now.give_up()
            self._now = None
            return
        with self._guarded():
            self._now.after_forward(output)

    def _before_update(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the optimizer is called with: a closure has the forward pass in it, and the update comes after that."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._copy_before_update()
            return None
        began = versions(self._model.parameters())

        def closed() -> Any:
            loss = closure()
            self._copy_before_update(began)
            return loss

        return (args[0], *args[2:]), {**kwargs, "closure": closed}

    def _copy_before_update(self, began: Sequence[int] | None = None) -> None:
        """`began`: the versions of the weights as the optimizer was called, where a closure was called since."""
        with self._guarded():
            if self._unchanged:
                raise UsageError("lab.step", "is called before optimizer.step()", remedy="Call it after the update.")
            if self._now is None:
                return
            if began is not None and began != versions(self._model.parameters()):
                kind = type(self._optimizer).__name__
                raise UsageError("optimizer", "changes weights and then calls its closure, and is not measured", kind)
            if self._now.updated:
                self.note("several updates in a step: gradients are those of the first, changes those of all")
                return
            self._now.before_update(self._optimizer)
            self._compare = False

    def _measure(self, loss: Tensor | float | None, y: Any) -> None:
        now, self._now = self._now, None
        if now is None or self._kept is None:
            self.note(f"step {self._step} had no forward pass of the model in training mode, and is not measured")
            return
        if now.updated:
            metrics, raw = now.metrics(loss, y)
            known = {"step": self._step, "lr": now.lr}
            self._kept.recorder.add(known, metrics | self._take_logged(), raw, seconds=now.seconds)
        elif now.versions != versions(self._model.parameters()):
            raise UsageError("optimizer", "the weights changed without its step()", remedy="Watch what changes them.")
        else:
            self._unchanged = True
            self.note(f"step {self._step}: the optimizer made no step, and it is not measured")

    def _take_logged(self) -> dict[str, Tensor]:
        logged, self._logged = self._logged, {}
        assert self._kept is not None
        self._kept.metrics |= logged
        device = self._probe_batch.device
        return {name: torch.tensor(x, device=device) for name, x in logged.items() if name not in OF_BATCHES}

    def _begin(self, x: Tensor) -> None:
        """Open the run folder, at the first forward pass.

        Raises:
            UsageError: the model cannot be measured, or there is a run that has ended.
        """
        given, loss = self._given, self._given["loss"]
        if self._twin is None:
            self._look_into(x)
        assert self._twin is not None
        net, batch = self._twin.net, self._probe_batch
        spec = described.probes_spec(given["probes"], len(batch))
        probes, every = probes_of(spec.options)
        leave_out(probes, frozenset({"test_data"}), "a loop of one's own has its own test", self.note)
        if given["data"] is None:
            leave_out(probes, frozenset({"training_data"}), "there is no data=", self.note)
        if loss is None:
            leave_out(probes, OF_LOSS, "there is no loss=", self.note)
        for name, probe in probes.items():
            if isinstance(probe, HasSplits) and probe.splits > len(x):
                raise UsageError(f"probes.{name}", "cannot split a batch", len(x), "Use a larger one.")
        seen = Split(batch, torch.zeros(len(batch), device=batch.device))
        with measuring(batch.device):
            self._observer = Observer(
                net=net,
                objective=loss,
                probes=probes,
                probe_batch=seen,
                data=seen if given["data"] is None else Split(*given["data"]),
                test=seen,
                schedule=self._schedule,
                every=every,
                seed=given["seed"],
            )
        tree = described.spec_tree(
            name=given["name"],
            arm=given["arm"] or described.arm_of(net),
            seed=given["seed"],
            steps=given["steps"],
            model=unwrapped(self._model)[0],
            optimizer=self._optimizer,
            loss=loss,
            x=x,
            precision=autocast_of(x.device),
            probes=spec,
        )
        self.notes += described.notes_of(net, self._optimizer)
        facts = described.facts_of(net, tree, self.notes) | ({"claims": digests(self._study)} if self._study else {})
        folder = RunFolder(Path(given["runs"]) / described.folder_of(tree))
        kept = Kept(folder, tree, facts, self._observer, fresh=given["fresh"])
        if self._study:
            described.write_claims(Path(given["runs"]) / given["name"], self._study, digests(self._study))
        for note in self.notes:
            kept.folder.log(note)
        self._kept = kept

    def _end(self, status: str, error: BaseException | None) -> None:
        """Write the end of the run. A failure here is said, and not raised."""
        if self._kept is None:
            return
        try:
            try:
                if self._logged:
                    self._kept.recorder.add({"step": self._step}, self._take_logged())
                self._kept.end(status, self._step, error)
            finally:
                self._kept.close()
        except Exception as problem:
            self._warn(f"the end of the run could not be written: {cause(problem)}")
        self.active = False

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Inside the `with`, an error ends the watching and not the training."""
        try:
            yield
        except Exception as error:
            self._detach()
            self._now = None
            why = str(error) if isinstance(error, UsageError) else cause(error)
            self._warn(f"not measured from step {self._step} on, the training goes on: {why}")
            self._end("failed", error)
            self.active = False

    def _warn(self, text: str) -> None:
        self.note(text)
        warnings.warn(f"bnlab: {text}", MeasuringWarning, stacklevel=5)
