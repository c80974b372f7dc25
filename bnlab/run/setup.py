"""From a spec to the parts of a run, with every check that needs the parts. Nothing is written here."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from bnlab.core.errors import UsageError, cause
from bnlab.core.registry import DATA, EXECUTORS, NORMS, OPTIMIZERS, PROBES, load_plugins
from bnlab.core.seeds import stream
from bnlab.core.spec import NormSpec, Options, RunSpec, canonical
from bnlab.core.state import Loss, Objective, PreservedBuffers, State, gradient_at, untouched_random_state
from bnlab.core.typed import check_options
from bnlab.data._accepted import accepted
from bnlab.data.base import Batches, Dataset, Split, augmentation, prepared, probe_batch
from bnlab.net.adopt import build_net
from bnlab.net.build import Net
from bnlab.net.evaluate import Inference
from bnlab.net.lsuv import scale_to_unit_variance
from bnlab.net.wrap import of_training, site_shapes
from bnlab.optim.base import learning_rate
from bnlab.probes.base import HasBatch, HasSplits, Probe
from bnlab.run import host
from bnlab.run.observe import Observer, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The parts of one run, on its device and at its initial weights."""

    spec: RunSpec
    steps: int
    dataset: Dataset
    batches: Batches
    net: Net
    inference: Inference
    precision: AbstractContextManager[object]
    """The context of a training step's forward and backward pass."""
    objective: Objective
    optimizer: torch.optim.Optimizer
    rates: tuple[float, ...]
    """The learning rate of every parameter group of the optimizer, before warm-up and schedule."""
    observer: Observer
    schedule: Schedule

    def set_rates(self, step: int) -> float:
        """Give the optimizer the learning rates of a step; returns that of `optim.lr`."""
        optim = self.spec.optim
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = learning_rate(optim, step, self.steps, rate)
        return learning_rate(optim, step, self.steps)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the user's own parts was changed, in words."""
        return (*self.dataset.notes, *self.net.notes)


def assemble(spec: RunSpec, shared: dict[str, Dataset] | None = None) -> Setup:
    """Build everything. Runs of one process with the same `shared` have one data set, if theirs are the same.

    Raises:
        UsageError: a fault that the spec alone does not show: an option of the wrong type for its constructor, a batch
            larger than the data, a norm on a layer that does not exist, a device that is missing, ...
    """
    load_plugins(spec.plugins, only=True)
    EXECUTORS.checked(spec.launch.name, spec.launch.options)
    if spec.device == "auto":
        spec = replace(spec, device=host.best_device())
    device, dtype = torch.device(available(spec.device)), getattr(torch, spec.dtype)
    dataset = _dataset(spec, device, dtype, {} if shared is None else shared)
    if dataset.classes is None and spec.loss == "cross_entropy":
        raise UsageError("loss", f"data={spec.data.name} has no classes", spec.loss, "Use loss=mse.")
    batches = Batches(dataset.train, spec.data.batch_size, spec.seed, augmentation(spec.data), spec.data.shuffle)
    net = build_net(spec.model, spec.norm, dataset.input_shape, dataset.outputs, spec.seed)
    _refuse_other_dtypes(net, dtype, f"model={spec.model.name}")
    net.module.to(device, dtype)
    # Saves a tenth to a third of a convolutional net's step (docs/lab.md); a user's forward may need the usual order.
    if device.type == "cpu" and not net.adopted and not any(map(_overruns, net.module.modules())):
        net.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    refuse_single_values(net, dataset.input_shape, spec.norm, batches.size, "data.batch_size")
    if spec.model.init == "lsuv":
        scale_to_unit_variance(net, batches.at(0).x, spec.model.init_scale)

    inference = _inference(spec, net, dataset, batches.size)
    probes, every = probes_of(spec.probes.options)
    for name, probe in probes.items():
        _refuse_batches(name, probe, net, dataset, batches.size, spec)
    probe_size = max([probe.batch for probe in probes.values() if isinstance(probe, HasBatch)], default=2)
    loss = Loss(spec.loss, spec.reduction)
    steps = spec.steps or max(1, math.ceil((spec.epochs or 1) * batches.per_epoch))
    schedule = Schedule(steps=steps, points=spec.probes.points, eval_points=spec.probes.eval_points)
    seen = probe_batch(dataset.train, probe_size, spec.seed)
    optimizer = _optimizer(spec, net)
    if net.adopted:
        refuse_other_passes(net, loss, batches.at(0), f"model={spec.model.name}")
    return Setup(
        spec=spec,
        steps=steps,
        dataset=dataset,
        batches=batches,
        net=net,
        inference=inference,
        precision=of_training(spec.precision, net, spec.device, spec.dtype),
        objective=loss,
        optimizer=optimizer,
        rates=tuple(float(group["lr"]) for group in optimizer.param_groups),
        observer=Observer(
            net=net,
            objective=loss,
            probes=probes,
            probe_batch=seen,
            data=dataset.train,
            test=dataset.test,
            schedule=schedule,
            every=every,
            seed=spec.seed,
        ),
        schedule=schedule,
    )


def asked(setup: Setup, spec: RunSpec, shared: dict[str, Dataset]) -> Setup:
    """The same net, as it is now, evaluated as `spec` says, which differs in conditions of the evaluation alone.

    Raises:
        UsageError: as `assemble`.
    """
    dataset = _dataset(spec, setup.dataset.train.device, getattr(torch, spec.dtype), shared)
    inference = _inference(spec, setup.net, dataset, setup.batches.size)
    return replace(setup, spec=replace(spec, device=setup.spec.device), dataset=dataset, inference=inference)


def _inference(spec: RunSpec, net: Net, dataset: Dataset, training_size: int) -> Inference:
    """How the net is evaluated.

    Raises:
        UsageError: batches that are too small for their own statistics.
    """
    inference = Inference(
        net,
        spec.eval_bn,
        batch_size=spec.eval_batch_size,
        training=dataset.train,
        training_size=training_size,
        seed=spec.seed,
    )
    if spec.eval_bn in ("batch", "adapted"):
        size = min(inference.size(len(split)) for split in (dataset.train, dataset.test))
        refuse_single_values(net, dataset.input_shape, spec.norm, size, "eval_batch_size")
    return inference


def _overruns(part: nn.Module) -> bool:
    """Whether oneDNN without AVX-512, channels last, writes past its workspace in the gradient of this convolution's
    weight: the gradient is wrong, or the process ends (oneDNN issue 6035, open in 3.14)."""
    return (
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and max(part.stride) > 1
        and part.in_channels // part.groups < 8
    )


def _dataset(spec: RunSpec, device: torch.device, dtype: torch.dtype, shared: dict[str, Dataset]) -> Dataset:
    """The data set on its device; that in `shared`, if it is the same."""
    key = canonical([spec.tree()["data"], list(spec.plugins), str(device), str(dtype)])
    if key not in shared:
        built = accepted(DATA.build(spec.data.name, spec.data.options), spec.data.name)
        shared.clear()
        shared[key] = prepared(built, spec.data).to(device, dtype)
    return shared[key]


def _optimizer(spec: RunSpec, net: Net) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained.

    Raises:
        UsageError: one that is no optimizer of torch's kind, whose step needs a closure, or that could not be resumed.
    """
    key, optim = f"optim={spec.optim.name}", spec.optim
    built = OPTIMIZERS.build(optim.name, optim.options, list(net.params.values()), optim.lr)
    if not isinstance(built, torch.optim.Optimizer):
        raise UsageError(key, "is not a torch.optim.Optimizer", type(built).__name__)
    closure = inspect.signature(built.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(key, "its step needs a closure, and a run has one forward a step", type(built).__name__)
    if not OPTIMIZERS.entry(optim.name).constructor.__module__.startswith("bnlab.optim."):
        _refuse_other_steps(spec, [param.detach() for param in net.params.values()])
    return built


def _refuse_other_steps(spec: RunSpec, params: Sequence[Tensor]) -> None:
    """Try a user's optimizer on copies of the parameters, and another one that goes on from its `state_dict`.

    Raises:
        UsageError: a step fails, or the two differ.
    """
    key, optim, trials = f"optim={spec.optim.name}", spec.optim, []
    generator = stream(spec.seed, "probe", "optimizer")
    gradients = [[torch.randn(x.shape, generator=generator).to(x) / 100 for x in params] for _ in range(8)]
    try:
        with untouched_random_state(params[0].device):
            for halves in ((gradients,), (gradients[:2], gradients[2:])):
                torch.manual_seed(0)
                copies = [nn.Parameter(x.clone()) for x in params]
                state: dict[str, Any] | None = None
                for half in halves:
                    tried = OPTIMIZERS.build(optim.name, optim.options, copies, optim.lr)
                    if state is not None:
                        tried.load_state_dict(state)
                    for of_step in half:
                        for param, gradient in zip(copies, of_step, strict=True):
                            param.grad = gradient.clone()
                        tried.step()
                    state = copy.deepcopy(tried.state_dict())
                trials.append(copies)
    except Exception as error:
        raise UsageError(key, f"a step without a closure fails: {cause(error)}") from error
    if not all(torch.equal(one, other) for one, other in zip(*trials, strict=True)):
        problem = "its state_dict leaves out what its steps depend on, and a resumed run would differ"
        raise UsageError(key, problem, remedy="Keep it in its state, or in param_groups.")


def _refuse_other_dtypes(net: Net, dtype: torch.dtype, key: str) -> None:
    """Refuse weights that would be rounded, or no longer fit what a user's forward does with them.

    Raises:
        UsageError: names one.
    """
    for name, param in net.module.named_parameters():
        if net.adopted and param.dtype not in (torch.float32, dtype):
            found, wanted = (str(one).removeprefix("torch.") for one in (param.dtype, dtype))
            remedy = "Use dtype=float64." if found == "float64" else "Keep weights in float32."
            raise UsageError("dtype", f"{key} has {name} in {found}", wanted, remedy)


def refuse_other_passes(net: Net, objective: Objective, batch: Split, key: str) -> None:
    """Compare a training step's loss and gradients on one batch with those computed at a state, as probes do.

    Raises:
        UsageError: they differ, so that measurements would be those of another net.
    """
    module, device = net.module, batch.x.device
    module.train()
    state = replace(State.of(module), params={name: param.detach() for name, param in net.params.items()})
    try:
        with PreservedBuffers(module), untouched_random_state(device) as random:
            loss = objective(module(batch.x), batch.y)
            found = torch.autograd.grad(loss, list(net.params.values()), materialize_grads=True)
            again, others = gradient_at(module, replace(state, random=random), batch.x, batch.y, objective)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(key, cause(error)) from error
    grads = dict(zip(net.params, found, strict=True))
    weights = {f"gradient of {name}": (grads[name], others[name]) for name in (site.params[0] for site in net.sites)}
    for what, (one, other) in {"loss": (loss.detach(), again), **weights}.items():
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()), equal_nan=True):
            remedy = "Draw from torch's global generator, and keep in buffers what a forward changes."
            raise UsageError(key, f"two forwards from the same state do not have the same {what}", remedy=remedy)


def cadence(*, every: Annotated[int, Ge(1)]) -> int:
    return every


def probes_of(options: Options) -> tuple[dict[str, Probe], dict[str, int]]:
    """The probes by name, and the option `every` of each: it is due at every n-th measured step."""
    probes: dict[str, Probe] = {}
    due: dict[str, int] = {}
    for name, given in options.items():
        prefix = f"probes.{name}"
        own = {key: value for key, value in given.items() if key != "every"}
        probes[name] = PROBES.build(name, own, prefix=prefix)
        due[name] = cadence(**check_options(cadence, {"every": given.get("every", 1)}, prefix))
    return probes, due


def _refuse_batches(name: str, probe: Probe, net: Net, dataset: Dataset, size: int, spec: RunSpec) -> None:
    """Refuse a probe batch larger than the data, and batches too small for batch statistics: the probe batch (`batch`),
    or the parts of a training batch that a probe splits (`splits`)."""
    if isinstance(probe, HasBatch):
        key, own = f"probes.{name}.batch", probe.batch
        if own > len(dataset.train):
            raise UsageError(key, f"larger than the {len(dataset.train)} training examples", own)
        refuse_single_values(net, dataset.input_shape, spec.norm, own, key)
    if isinstance(probe, HasSplits) and probe.splits > 1:
        if size < probe.splits:
            raise UsageError("data.batch_size", f"cannot be split for probes.{name}", size, "Use a larger one.")
        key = f"data.batch_size (split for probes.{name})"
        refuse_single_values(net, dataset.input_shape, spec.norm, size // probe.splits, key)


def refuse_single_values(net: Net, input_shape: tuple[int, ...], norm: NormSpec, batch_size: int, key: str) -> None:
    """Refuse statistics of a single value, over the batch or over space: their variance is 0.

    Raises:
        UsageError: names `key`, the setting of the batch size; or the norm, where no batch size is enough.
    """
    traits = NORMS.entry(norm.name).traits
    if not traits & {"batch_statistics", "space_statistics"}:
        return
    for site, shape in zip(net.sites, site_shapes(net, input_shape), strict=True):
        positions = math.prod(shape[1:])
        if site.norm is not None and "batch_statistics" in traits and batch_size * positions < 2:
            remedy = "Batch statistics need at least two: use a larger batch, or a norm without them."
            raise UsageError(key, f"gives norm={norm.name} one value per channel at {site.name}", batch_size, remedy)
        if site.norm is not None and "space_statistics" in traits and positions < 2:
            remedy = "Leave that layer out of norm.layers, or use norm=layer."
            raise UsageError("norm", f"one value per channel and example at {site.name}", norm.name, remedy)


def available(device: str) -> str:
    """The device, if this machine has it.

    Raises:
        UsageError: the machine does not have it.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found[device]:
        raise UsageError("device", "not available on this machine", device, "Use device=cpu.")
    return device
