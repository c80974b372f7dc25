"""Modules whose `forward` is wrapped for a while: taps that see what passes, affine maps in bfloat16, norms passed by.

Legend: B batch, C channels, H W space, L sites.

A tap wraps one module of each site during a forward pass inside the `with`: its norm if that is between pre and
act_in, else its affine map. Where the nonlinearity sees the sum of a residual block, it wraps the activation too. A
wrapper costs a tenth of a module hook, and nothing outside the `with`.
This module is also the one place that reads private attributes of torch's tensors (`saved_moments`, `version_of`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.state import outputs_now
from bnlab.net.build import Net, Site

Forward = Callable[..., Tensor]
Passed = tuple[Tensor, Tensor]
"""The input and the output of a module."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
HALF = (torch.bfloat16, torch.float16)
LARGEST_SAVED_EPS = 1e-3
"""Up to this eps a variance is read off the 1 / sqrt(variance + eps) that a batch norm saves. In float32 its error is
then 3e-7 (variance + eps) by rounding: 3e-10 at most where eps is all. With a larger one it is computed from pre."""


AWrap = TypeVar("AWrap", bound="Wrapped")


class Wrapped(AbstractContextManager["Wrapped"]):
    """Inside the `with`, modules run `wrap(place, forward)` in place of their `forward`; after it, each has the
    `forward` that it had, of its class or of its own. Wrappers nest, and a context may be entered again."""

    def __init__(self, modules: Iterable[nn.Module], wrap: Callable[[int, Forward], Forward]) -> None:
        self._modules, self._wrap = list(modules), wrap

    def __enter__(self: AWrap) -> AWrap:
        self._own = [vars(module).get("forward") for module in self._modules]
        for place, module in enumerate(self._modules):
            module.__dict__["forward"] = self._wrap(place, module.forward)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for module, own in zip(self._modules, self._own, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:  # another wrapper's, or the module's own
                module.__dict__["forward"] = own


@dataclass(frozen=True, slots=True)
class Sites:
    """What one forward pass computed at each of the L sites: tensors [B, C], [B, C, T] or [B, C, H, W].

    Where a site has no norm before its nonlinearity, `act_in` is the tensor `pre` itself; at the end of a residual
    block it is the sum that the nonlinearity sees.
    """

    pre: list[Tensor] = field(default_factory=list)
    act_in: list[Tensor] = field(default_factory=list)


class SavedMoments(NamedTuple):
    """Of a batch norm's input: the mean and 1 / sqrt(variance + eps) per channel, each [C]."""

    mean: Tensor
    inverse_sd: Tensor


@dataclass(frozen=True, slots=True)
class TrainingSites:
    """What the training forward and backward passes computed at each of the L sites. It keeps no tensor alive that the
    backward pass would free: that would cost a small convolutional net a twentieth of its step."""

    pre: list[SavedMoments | Tensor] = field(default_factory=list)
    """What the site's batch norm saved of its input; pre itself where there is none, or one without a `saved_eps`."""
    delta_norms: dict[int, Tensor] = field(default_factory=dict)
    """By site, after the backward pass: the norm of the loss's gradient at pre, a scalar; empty unless requested."""


class _Tap(Wrapped):
    """Notes the inputs and the outputs of some modules during one forward pass."""

    def __init__(self, calls: Iterable[tuple[nn.Module, int]], *, copies: bool = False) -> None:
        """`calls`: modules, and which call of each is wanted, counted from 0. `copies`: the forward gets copies of what
        they give, since it changes these in place."""
        self._calls, self._copies = list(calls), copies
        self._passed: dict[nn.Module, list[Passed]] = {}
        super().__init__(dict.fromkeys(module for module, _ in self._calls), self._noting)

    def _noting(self, place: int, forward: Forward) -> Forward:
        passed: list[Passed] = []
        self._passed[self._modules[place]] = passed
        return partial(_noted, forward, passed, self._copies)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            if any(call >= len(self._passed[module]) for module, call in self._calls):
                raise UsageError("model", "a forward left out a part that is measured, as no earlier one did")
            self._see([self._passed[module][call] for module, call in self._calls])
        self._passed.clear()

    @abstractmethod
    def _see(self, passed: Sequence[Passed]) -> None:
        """Take the input and the output of every call."""


def _noted(forward: Forward, passed: list[Passed], copies: bool, *args: Tensor, **kwargs: Tensor) -> Tensor:
    out = forward(*args, **kwargs)
    passed.append((args[0] if args else next(iter(kwargs.values())), out))
    return out.clone() if copies else out


class _PreTap(_Tap):
    """A tap that sees pre of every site: the input of a norm before the nonlinearity, else the affine map's output."""

    def __init__(self, net: Net, more: Iterable[tuple[nn.Module, int]] = ()) -> None:
        self._norms = [site.norm if site.norm_first else None for site in net.sites]
        seen = [(norm or site.affine, 0) for norm, site in zip(self._norms, net.sites, strict=True)]
        super().__init__([*seen, *more], copies=net.copies)

    def _pre(self, index: int, passed: Sequence[Passed]) -> Tensor:
        given, out = passed[index]
        return out if self._norms[index] is None else given


class Tap(_PreTap):
    """Records pre and act_in of every site during one forward pass; `sites` is complete after the `with`."""

    def __init__(self, net: Net) -> None:
        self._of = net.sites
        sums = [(index, site) for index, site in enumerate(net.sites) if site.residual_sum]
        super().__init__(net, [(site.activation, site.activation_call) for _, site in sums])
        self.sites = Sites()
        self._sums = {index: len(net.sites) + i for i, (index, _) in enumerate(sums)}

    def _see(self, passed: Sequence[Passed]) -> None:
        for index, (norm, site) in enumerate(zip(self._norms, self._of, strict=True)):
            pre = _wide(by_channel(site, self._pre(index, passed)))
            self.sites.pre.append(pre)
            if (at := self._sums.get(index)) is not None:
                self.sites.act_in.append(_wide(by_channel(site, passed[at][0])))
            else:
                self.sites.act_in.append(pre if norm is None else _wide(by_channel(site, passed[index][1])))


class AffineTap(_Tap):
    """Records what every site's affine map is given and what it returns, `inputs` and `outputs`, during one forward
    pass."""

    def __init__(self, net: Net) -> None:
        super().__init__(((site.affine, 0) for site in net.sites), copies=net.copies)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def _see(self, passed: Sequence[Passed]) -> None:
        for given, out in passed:
            self.inputs.append(given)
            self.outputs.append(out)


class NormTap(_Tap):
    """Records `seen`, by site what its norm sees during one forward pass; with `every`, also what those of no site see,
    counted from L."""

    def __init__(self, net: Net, *, every: bool = False) -> None:
        norms = net.every_norm if every else net.norms
        super().__init__((norm, 0) for norm in norms.values())
        self._indices = list(norms)
        self.seen: dict[int, Tensor] = {}

    def _see(self, passed: Sequence[Passed]) -> None:
        self.seen = {index: given for index, (given, _) in zip(self._indices, passed, strict=True)}


class TrainingTap(_PreTap):
    """Records `training` during a forward pass that a backward pass will follow."""

    def __init__(self, net: Net, *, deltas: bool) -> None:
        """`deltas`: also the norm of the gradient at pre."""
        super().__init__(net)
        self._of = net.sites
        self.training = TrainingSites()
        self._deltas = deltas

    def _see(self, passed: Sequence[Passed]) -> None:
        for index, norm in enumerate(self._norms):
            pre = self._pre(index, passed)
            saved = None if norm is None else saved_moments(norm, passed[index][1])
            self.training.pre.append(_wide(by_channel(self._of[index], pre.detach())) if saved is None else saved)
            if self._deltas:
                pre.register_hook(partial(_note_norm, self.training.delta_norms, index))  # type: ignore[no-untyped-call]


def _note_norm(norms: dict[int, Tensor], index: int, gradient: Tensor) -> None:
    norms[index] = torch.linalg.vector_norm(_wide(gradient))


def by_channel(site: Site, x: Tensor) -> Tensor:
    """A tensor at a site with its channels as dimension 1: a view."""
    return x.movedim(-1, 1) if site.channels_last else x


def _wide(x: Tensor) -> Tensor:
    """What a forward computes in 16 bits, as under autocast, in float32: moments of it would be rounded too. What a
    gradient is still to be taken of stays what it is."""
    return x.float() if x.dtype in HALF and not x.requires_grad else x


def one_example(net: Net, input_shape: tuple[int, ...]) -> Sites:
    """What the sites see of one example of zeros, for its shapes: [1, C] or [1, C, H, W]. Leaves the net as it was.
    Norms keep shapes and are replaced by copies, since some refuse a single example."""
    param = next(net.module.parameters())
    x = torch.zeros(1, *input_shape, dtype=net.input_dtype or param.dtype, device=param.device)
    with Wrapped(net.norms.values(), lambda place, forward: torch.clone), Tap(net) as tap:
        outputs_now(net.module, x, "running")
    return tap.sites


def site_shapes(net: Net, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shape of one example at `pre` of every site: (C,) or (C, H, W)."""
    return [tuple(pre.shape[1:]) for pre in one_example(net, input_shape).pre]


def saved_eps(norm: nn.Module | None) -> float | None:
    """The eps of torch's own batch norm, if the moments that it saves are exact enough; else None."""
    if isinstance(norm, BATCH_NORMS) and type(norm) in BATCH_NORMS and norm.eps <= LARGEST_SAVED_EPS:
        return norm.eps
    return None


def saved_moments(norm: nn.Module, out: Tensor) -> SavedMoments | None:
    """What torch's batch norm saves of its input for its backward pass; to be read before that pass, which frees it.

    Private attributes of autograd: their presence and shape are checked, and the result is None where anything differs
    from what is expected. Then the moments are computed from the input instead.
    """
    if saved_eps(norm) is None or not norm.training:
        return None
    mean, inverse_sd = getattr(out.grad_fn, "_saved_result1", None), getattr(out.grad_fn, "_saved_result2", None)
    if mean is None or inverse_sd is None or not mean.shape == inverse_sd.shape == out.shape[1:2]:
        return None
    return SavedMoments(mean, inverse_sd)


class Copied(nn.Identity):
    """In place of a norm in a net that changes tensors in place: what it is given stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def version_of(x: Tensor) -> int:
    """How often a tensor was changed in place: a private attribute of autograd; always 0 in a torch without it."""
    return int(getattr(x, "_version", 0))


def of_training(precision: str, net: Net, device: str, dtype: str) -> AbstractContextManager[object]:
    """The context of a training step's forward and backward pass, entered again at every step, for `precision=`:

    - `float32`: every product in full (TF32 is off on a GPU: run/host.py)
    - `tf32`: a GPU may round the factors of matrix products and convolutions to 10 bits, forward and backward
    - `bfloat16`: every site's affine map is computed in bfloat16, forward and backward, from weights kept in float32,
      and returns float32: norms and their statistics, activations, sums, loss and update are in float32

    It holds in training steps only. What probes compute themselves and every evaluation are in full precision;
    measurements of the training pass itself (batch moments, gradient norms) are of what was trained.

    Raises:
        UsageError: a precision that this device or this dtype does not have.
    """
    if precision == "float32":
        return nullcontext()
    if dtype != "float32":
        raise UsageError("precision", f"cannot go with dtype={dtype}", precision, "Leave it out, or use dtype=float32.")
    if precision == "tf32":
        if device != "cuda":
            raise UsageError("precision", f"not known to device={device}", precision, "Use device=cuda, or bfloat16.")
        return _TensorFloat32()
    # Wrapped below a tap, which is entered inside this context: so a tap sees float32.
    return Wrapped((site.affine for site in net.sites), lambda place, forward: partial(_in_bfloat16, forward, device))


class _TensorFloat32(AbstractContextManager["_TensorFloat32"]):
    """TF32 on inside the `with`, off outside."""

    def __enter__(self) -> _TensorFloat32:
        _allow_tf32(True)
        return self

    def __exit__(self, *_: object) -> None:
        _allow_tf32(False)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _in_bfloat16(forward: Forward, device: str, *args: Tensor, **kwargs: Tensor) -> Tensor:
    with torch.autocast(device, torch.bfloat16):
        out = forward(*args, **kwargs)
    return out.to(torch.float32)
