"""Forward passes of a user's module, as its parts see them: what follows what, and where each tensor comes from."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab.core.state import Mode, PreservedBuffers, as_in, untouched_random_state
from bnlab.net.wrap import BATCH_NORMS, Copied, version_of

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)
NORM = (*BATCH_NORMS, nn.SyncBatchNorm, *INSTANCE_NORMS, nn.GroupNorm, *LAST_NORMS)
NORM_FUNCTIONS = {
    getattr(home, name)
    for home in (torch, F)
    for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
    if hasattr(home, name)
}
NONLINEARITIES: dict[Callable[..., Tensor], Callable[[], nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    Tensor.relu: nn.ReLU,
    torch.sigmoid: nn.Sigmoid,
    Tensor.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
    Tensor.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.celu: nn.CELU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.relu6: nn.ReLU6,
    F.hardswish: nn.Hardswish,
    F.hardtanh: nn.Hardtanh,
    F.softsign: nn.Softsign,
    F.logsigmoid: nn.LogSigmoid,
    F.hardsigmoid: nn.Hardsigmoid,
    F.rrelu: nn.RReLU,
    F.tanhshrink: nn.Tanhshrink,
    F.softshrink: nn.Softshrink,
    F.hardshrink: nn.Hardshrink,
    torch.clamp: nn.Hardtanh,
    Tensor.clamp: nn.Hardtanh,
    torch.clamp_min: nn.Hardtanh,
    Tensor.clamp_min: nn.Hardtanh,
}
"""Nonlinearities that a forward may call as functions, with the module of the same kind."""
NONLINEARITIES |= {
    getattr(home, f"{function.__name__}_"): kind
    for function, kind in NONLINEARITIES.items()
    for home in (torch, F, Tensor)
    if hasattr(home, f"{function.__name__}_")
}  # relu_, ...
DECIDING = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")
"""Functions that make Python numbers of tensors."""


class At(NamedTuple):
    """A tensor at one moment of a forward, which may change it in place later."""

    x: Tensor
    version: int
    node: object
    """Of autograd."""

    @classmethod
    def now(cls, x: Tensor) -> At:
        return cls(x, version_of(x), x.grad_fn)

    @property
    def key(self) -> tuple[int, int]:
        """Equal for one tensor that was not changed meanwhile."""
        return id(self.x), self.version

    @property
    def shape(self) -> torch.Size:
        return self.x.shape


@dataclass(frozen=True, slots=True)
class Call:
    """The input and the output of an affine map, of a norm, of another part that has no parts of its own, or of a
    nonlinearity that is a function."""

    path: str
    part: nn.Module
    nth: int
    """Which call of this part it is, from 0."""
    given: At
    out: At
    then: Tensor
    """A copy of the output when it was returned."""
    acts: bool
    """Whether it is a nonlinearity."""
    is_function: bool = False

    @property
    def has_channels(self) -> bool:
        """Whether dimension 1 of an affine map's output is that of the channels: [B, C], [B, C, T] or [B, C, H, W]."""
        return len(self.out.shape) == 2 or (len(self.out.shape) in (3, 4) and not isinstance(self.part, nn.Linear))

    @property
    def has_channels_last(self) -> bool:
        """Whether it is an affine map of each position by itself: [B, T, C] or [B, H, W, C]."""
        return len(self.out.shape) in (3, 4) and isinstance(self.part, nn.Linear)

    @property
    def is_norm(self) -> bool:
        return isinstance(self.part, NORM)

    @property
    def is_last_norm(self) -> bool:
        """Whether it normalizes over the last dimension, as in a transformer."""
        return isinstance(self.part, LAST_NORMS)

    @property
    def kind(self) -> str:
        """What a norm with a forward of its own is, in words."""
        known = next(kind for kind in NORM if isinstance(self.part, kind)).__name__
        return f"a {type(self.part).__name__}, which computes something else than its nn.{known}"


@dataclass(slots=True)
class Trace:
    """One pass: its calls in the order of computation, and its outputs."""

    calls: list[Call] = field(default_factory=list)
    output: object = None
    hidden_norms: list[str] = field(default_factory=list)
    """Parts that normalize and are no norm of torch.nn, and `forward` itself if it calls a norm as a function."""
    fused: set[str] = field(default_factory=set)
    """Norms that compute something else than torch's norm of their kind."""
    recomputed: str | None = None
    """A part that the backward pass computes again."""
    changes_input: bool = False
    unreached: set[str] = field(default_factory=set)
    """Parts whose output the gradient does not reach."""
    draws: bool = False
    """Whether it draws from torch's global generator."""
    draws_elsewhere: bool = False
    """Whether it draws from Python's or NumPy's global generator."""
    decides: bool = False
    """Whether it makes a Python number of a tensor, as to leave out a part."""
    faults: dict[str, str] = field(default_factory=dict)
    """Why an affine map can be no site, by its path."""
    in_training: list[str] = field(default_factory=list)
    """Norms that evaluation leaves out."""
    changes: bool = False
    """Whether the forward changes in place what a part gives."""

    def of(self, path: str) -> list[Call]:
        """The calls of a part."""
        return [call for call in self.calls if call.path == path and not call.is_function]

    def after(self, call: Call, wanted: Callable[[Call], bool]) -> Call | None:
        """The first wanted call whose input is the very output of another one, or its copy in the place of a norm."""
        for one in self.calls:
            if one.given.key == call.out.key:
                found = one if wanted(one) else self.after(one, wanted) if isinstance(one.part, Copied) else None
                if found is not None:
                    return found
        return None


def faults(evaluated: Trace, training: Trace, left_out: set[str]) -> Iterator[tuple[str, str]]:
    """For each part that could not be the affine map of a site, why."""
    uses = Counter(_leaves(evaluated.output))
    for call in evaluated.calls:
        weight = dict(call.part.named_parameters(recurse=False)).get("weight")
        if call.is_function:
            continue
        if len(evaluated.of(call.path)) > 1 or len(training.of(call.path)) > 1:
            yield call.path, "is used more than once in a forward"
        elif call.path in left_out or not training.of(call.path):
            yield call.path, "is left out of a forward in training"
        elif weight is None:
            yield call.path, "has a weight that is no parameter: it is computed at every forward, as by weight_norm"
        elif not weight.requires_grad:
            yield call.path, "is frozen (requires_grad=False)"
        elif uses[id(weight)] > 1:
            yield call.path, "has a weight that forward uses in another place too"
        elif call.path in training.unreached:
            yield call.path, "gives what the gradient of the outputs does not reach"
        elif call.has_channels_last:
            if evaluated.after(call, lambda one: one.acts or one.is_last_norm) is None:
                yield call.path, "gives [B, T, C], and no nonlinearity or norm of C sees just that"
        elif not call.has_channels:
            yield call.path, f"gives {len(call.out.shape)} dimensions, and a site gives [B, C] or [B, C, ...]"


def _leaves(output: object) -> Iterator[int]:
    """The parameters in the graph of an output, by their ids, once for each place where they are used."""
    waiting, visited = [getattr(output, "grad_fn", None)], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        for before, _ in node.next_functions:
            if hasattr(before, "variable"):
                yield id(before.variable)
            waiting.append(before)


def kept(module: nn.Module) -> dict[str, float | Tensor]:
    """The numbers and tensors that the parts keep in attributes, copied; buffers and parameters are not among them."""
    return {
        f"{path}.{name}".lstrip("."): value.detach().clone() if isinstance(value, Tensor) else value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, int | float | Tensor)
    }


def same(one: float | Tensor, other: float | Tensor) -> bool:
    return _close(one, other) if isinstance(one, Tensor) or isinstance(other, Tensor) else one == other


def trace(module: nn.Module, x: Tensor, mode: Mode) -> Trace:
    """One forward pass with a graph, in which the module's buffers and the global random state stay as they are."""
    seen, inside = Trace(), list[tuple[str, At | None]]()
    known = (*AFFINE, *NORM)
    paths = {
        part: path for path, part in module.named_modules() if isinstance(part, known) or not list(part.children())
    }
    counts = dict.fromkeys(paths, 0)

    def enter(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = _first_tensor(args, kwargs)
        inside.append((paths[part], None if given is None else At.now(given)))

    def leave(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        given = _first_tensor(args, kwargs)
        if isinstance(part, NORM) and not _is_plain(part, given, out):
            seen.fused.add(paths[part])
        if given is not None and _normalizes(part, given.detach()):
            seen.hidden_norms.append(paths[part])
        _, before = inside[-1]
        if before is not None and given is not None and isinstance(out, Tensor):
            acts = type(part).__module__ == "torch.nn.modules.activation" or _acts_alike(part, given.detach())
            now = At.now(out)
            seen.calls.append(Call(paths[part], part, counts[part], before, now, out.detach().clone(), acts))
        counts[part] += 1
        inside.pop()

    class Functions(TorchFunctionMode):
        """Notes nonlinearities and norms that are called as functions, and not by a part of that kind."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = _first_tensor(args, kwargs or {}) if function in NONLINEARITIES and not inside else None
            before = None if given is None else At.now(given)
            out = function(*args, **(kwargs or {}))
            seen.decides |= getattr(function, "__name__", "") in DECIDING
            if before is not None:
                part, name = NONLINEARITIES[function](), function.__name__
                seen.calls.append(Call(name, part, 0, before, At.now(out), out.detach().clone(), True, True))
            elif function in NORM_FUNCTIONS and not (inside and isinstance(module.get_submodule(inside[-1][0]), NORM)):
                seen.hidden_norms.append(inside[-1][0] if inside else "forward")
            return out

    handles = [part.register_forward_pre_hook(enter, with_kwargs=True) for part in paths]
    handles += [part.register_forward_hook(leave, with_kwargs=True) for part in paths]
    try:
        with as_in(module, mode), PreservedBuffers(module), untouched_random_state(x.device), torch.enable_grad():
            torch.manual_seed(0)
            before, elsewhere = torch.get_rng_state(), _other_random_states()
            fed = x * 1  # no leaf, so that a forward may change it
            with Functions():
                seen.output = module(fed)
            seen.changes_input = version_of(fed) > 0
            seen.draws = not torch.equal(before, torch.get_rng_state())
            seen.draws_elsewhere = _other_random_states() != elsewhere
            if mode == "batch" and isinstance(seen.output, Tensor):
                _backward(seen)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _backward(seen: Trace) -> None:
    """The backward pass of a trace, for what it computes again and what it does not reach."""
    assert isinstance(seen.output, Tensor)
    calls = list(seen.calls)
    ends = [call for call in calls if call.out.x.requires_grad]
    try:
        total = seen.output.sum()
        found = torch.autograd.grad(total, [call.out.x for call in ends], retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        seen.recomputed = next((call.path for call in calls if not call.out.x.requires_grad), "a part")
        return
    if len(seen.calls) > len(calls):
        seen.recomputed = seen.calls[len(calls)].path
    reached = {call.path for call, gradient in zip(ends, found, strict=True) if gradient is not None}
    seen.unreached = {call.path for call in calls} - reached


def _other_random_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state()))


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)


def _is_plain(norm: nn.Module, given: Tensor | None, out: object) -> bool:
    """Whether a norm computes what torch's norm of its kind computes with the same parameters and buffers."""
    known = next(kind for kind in NORM if isinstance(norm, kind))
    forward: Any = known.forward
    return given is not None and _close(forward(norm, given.detach()), out)


def _is_of_torch(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.nn.") or isinstance(part, NORM)


def _normalizes(part: nn.Module, x: Tensor) -> bool:
    """Whether what a user's part gives varies, and does not depend on the scale of what it is given."""
    if _is_of_torch(part):
        return False
    try:
        with torch.no_grad():
            one, other = (type(part).forward(part, scale * x) for scale in (10.0, 1000.0))
    except Exception:
        return False
    varies = isinstance(one, Tensor) and one.is_floating_point() and bool(one.std() > 1e-3)
    return varies and one.shape == other.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-2)


def _acts_alike(part: nn.Module, x: Tensor) -> bool:
    """Whether a user's part is one nonlinear function of every value: it commutes with a permutation of all values, and
    is not affine."""
    if _is_of_torch(part):
        return False
    forward = type(part).forward  # without the hooks
    try:
        with torch.no_grad():
            out = forward(part, x)
            order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
            moved = forward(part, x.flatten()[order].view(x.shape))
            bent = forward(part, 2 * x) - 2 * out + forward(part, torch.zeros_like(x))
    except Exception:
        return False
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return False
    return _close(moved.flatten(), out.flatten()[order]) and bool((bent.abs() > 1e-3 * (out.abs().max() + 1e-30)).any())


def sources(node: Any, ends: Mapping[object, str]) -> set[str]:
    """From which of the outputs `ends`, by the node of autograd that made it, the tensor of a node is computed with no
    other of them in between."""
    found: set[str] = set()
    waiting, visited = [node], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node in ends:
            found.add(ends[node])
        else:
            waiting += [before for before, _ in node.next_functions]
    return found


def first_difference(one: Trace, other: Trace) -> str | None:
    """The first part at which two passes differ by more than rounding; None where they are equal."""
    for a, b in zip(one.calls, other.calls, strict=False):
        if a.path != b.path or not _close(a.then, b.then):
            return b.path
    if len(one.calls) != len(other.calls) or not _close(one.output, other.output):
        return "its output"
    return None


def _close(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
