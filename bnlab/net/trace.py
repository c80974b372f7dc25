"""One forward pass of a user's module, as its parts see it: what follows what, and where each tensor comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnlab.core.state import Mode, PreservedBuffers, as_in, untouched_random_state
from bnlab.net.wrap import BATCH_NORMS, version_of

AFFINE = (nn.Linear, nn.Conv2d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORM = (*BATCH_NORMS, nn.SyncBatchNorm, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
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
}
"""Nonlinearities that a forward may call as functions, with the module of the same kind."""


@dataclass(frozen=True, slots=True)
class Call:
    """The input and the output of an affine map, of a norm, of another part that has no parts of its own, or of a
    nonlinearity that is a function."""

    path: str
    part: nn.Module
    nth: int
    """Which call of this part it is, from 0."""
    given: Tensor
    out: Tensor
    then: Tensor
    """A copy of the output when it was returned."""
    version: int
    acts: bool
    """Whether it is a nonlinearity."""
    is_function: bool = False

    @property
    def has_channels(self) -> bool:
        """Whether dimension 1 of an affine map's output is that of the channels: [B, C] or [B, C, H, W]."""
        return self.out.ndim == 2 or (self.out.ndim == 4 and not isinstance(self.part, nn.Linear))


@dataclass(slots=True)
class Trace:
    """One pass: its calls in the order of computation, and its outputs."""

    calls: list[Call] = field(default_factory=list)
    output: object = None
    hidden_norms: list[str] = field(default_factory=list)
    """Parts that normalize and are no norm of torch.nn, and `forward` itself if it calls a norm as a function."""
    fused: set[str] = field(default_factory=set)
    """Norms that compute something else than torch's norm of their kind."""

    def of(self, path: str) -> list[Call]:
        """The calls of a part."""
        return [call for call in self.calls if call.path == path and not call.is_function]


def trace(module: nn.Module, x: Tensor, mode: Mode) -> Trace:
    """One forward pass with a graph, in which the module's buffers and the global random state stay as they are."""
    seen, inside = Trace(), list[str]()
    known = (*AFFINE, *NORM)
    paths = {
        part: path for path, part in module.named_modules() if isinstance(part, known) or not list(part.children())
    }
    counts = dict.fromkeys(paths, 0)

    def enter(part: nn.Module, args: object) -> None:
        inside.append(paths[part])

    def leave(part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        if isinstance(part, NORM) and not _is_plain(part, given, out):
            seen.fused.add(paths[part])
        if given is not None and _normalizes(part, given.detach()):
            seen.hidden_norms.append(paths[part])
        inside.pop()
        if given is not None and isinstance(out, Tensor):
            then = out.detach().clone()
            acts = type(part).__module__ == "torch.nn.modules.activation" or _acts_alike(part, given.detach())
            seen.calls.append(Call(paths[part], part, counts[part], given, out, then, version_of(out), acts))
        counts[part] += 1

    class Functions(TorchFunctionMode):
        """Notes nonlinearities and norms that are called as functions, and not by a part of that kind."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if function in NONLINEARITIES and not inside:
                part, name = NONLINEARITIES[function](), function.__name__
                seen.calls.append(Call(name, part, 0, args[0], out, out.detach().clone(), version_of(out), True, True))
            elif function in NORM_FUNCTIONS and not (inside and isinstance(module.get_submodule(inside[-1]), NORM)):
                seen.hidden_norms.append(inside[-1] if inside else "forward")
            return out

    handles = [part.register_forward_pre_hook(enter) for part in paths]
    handles += [part.register_forward_hook(leave, with_kwargs=True) for part in paths]
    try:
        with as_in(module, mode), PreservedBuffers(module), untouched_random_state(x.device), torch.enable_grad():
            torch.manual_seed(0)
            with Functions():
                seen.output = module(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


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


def sources(x: Tensor, ends: Mapping[object, str]) -> set[str]:
    """From which of the outputs `ends`, by the node of autograd that made it, a tensor is computed with no other of
    them in between."""
    found: set[str] = set()
    waiting, visited = [x.grad_fn], set[object]()
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
