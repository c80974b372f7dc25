"""Seeing what passes through a net's sites. Legend: B batch, C channels, H W space, L sites.

During a forward pass inside the `with`, one module of each site has its `forward` wrapped: its norm if that stands
between pre and act_in, else its activation; or its affine map. Where the nonlinearity sees a sum, that of a residual
block, two: one for pre, and the activation for act_in. A wrapper costs a tenth of a module hook, and nothing at
all outside the `with`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from bnlab.net.build import Net

Passed = tuple[Tensor, Tensor]
"""What a module was given, and what it gave."""

BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Sites:
    """What one forward showed at each of the L sites: tensors [B, C] or [B, C, H, W].

    Where a site has no norm before its nonlinearity, `act_in` is the very tensor `pre`, unless the site joins: then it
    is the sum that the nonlinearity sees.
    """

    pre: list[Tensor] = field(default_factory=list)
    act_in: list[Tensor] = field(default_factory=list)


class SavedMoments(NamedTuple):
    """Of a batch norm's input: the mean and 1 / sqrt(variance + eps) per channel, each [C]."""

    mean: Tensor
    inverse_sd: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class TrainingSites:
    """What the training forward and backward showed at each of the L sites, without keeping tensors alive that the
    backward pass would let go of: they would cost a small convolutional net a twentieth of its step."""

    pre: list[SavedMoments | Tensor] = field(default_factory=list)
    """What the site's batch norm kept of its input; where there is none, pre itself."""
    delta_norms: dict[int, Tensor] = field(default_factory=dict)
    """By site, after the backward pass: the norm of the loss's gradient at pre, a scalar; if it was asked for."""


AWrap = TypeVar("AWrap", bound="_Wrap")


class _Wrap(AbstractContextManager["_Wrap"]):
    """Notes what goes into and comes out of some modules during one forward pass, each of which runs once in it."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._wrapped = list(modules)
        self._passed: dict[int, Passed] = {}  # by place in `_wrapped`: modules may run in another order

    def __enter__(self: AWrap) -> AWrap:
        self._own = [vars(module).get("forward") for module in self._wrapped]
        for place, module in enumerate(self._wrapped):
            module.__dict__["forward"] = partial(_passing, module.forward, self._passed, place)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for module, own in zip(self._wrapped, self._own, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:  # somebody else's wrapper, from before
                module.__dict__["forward"] = own
        if kind is None:
            self._see([self._passed[place] for place in range(len(self._wrapped))])
        self._passed.clear()

    @abstractmethod
    def _see(self, passed: Sequence[Passed]) -> None:
        """What every module was given and gave, in the order of the modules."""


class _PreTap(_Wrap):
    """A tap that sees pre of every site."""

    def __init__(self, net: Net) -> None:
        self._norms = [site.norm if site.norm_first else None for site in net.sites]
        self._joins = [site.joins for site in net.sites]
        # A user's module need not have a part for no nonlinearity.
        self._of_affine = [site.joins or isinstance(site.activation, torch.nn.Identity) for site in net.sites]
        super().__init__(
            norm or (site.affine if of_affine else site.activation)
            for norm, of_affine, site in zip(self._norms, self._of_affine, net.sites, strict=True)
        )

    def _pre(self, index: int, passed: Sequence[Passed]) -> Tensor:
        given, out = passed[index]
        return out if self._of_affine[index] and self._norms[index] is None else given


class Tap(_PreTap):
    """Records pre and act_in of every site during one forward pass; `sites` is whole after the `with`."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.sites = Sites()
        self._sums = {index: len(net.sites) + i for i, index in enumerate(i for i, at in enumerate(self._joins) if at)}
        self._wrapped += [net.sites[index].activation for index in self._sums]

    def _see(self, passed: Sequence[Passed]) -> None:
        for index, norm in enumerate(self._norms):
            pre = self._pre(index, passed)
            self.sites.pre.append(pre)
            if (at := self._sums.get(index)) is not None:
                self.sites.act_in.append(passed[at][0])
            else:
                self.sites.act_in.append(pre if norm is None else passed[index][1])


class AffineTap(_Wrap):
    """Records what every site's affine map is given and what it returns, `inputs` and `outputs`, during one forward
    pass."""

    def __init__(self, net: Net) -> None:
        super().__init__(site.affine for site in net.sites)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def _see(self, passed: Sequence[Passed]) -> None:
        for given, out in passed:
            self.inputs.append(given)
            self.outputs.append(out)


class NormTap(_Wrap):
    """Records what the norm of every site sees during one forward pass; None at a site without one."""

    def __init__(self, net: Net) -> None:
        norms = {index: site.norm for index, site in enumerate(net.sites) if site.norm is not None}
        super().__init__(norms.values())
        self.seen: list[Tensor | None] = [None] * len(net.sites)
        self._indices = list(norms)

    def _see(self, passed: Sequence[Passed]) -> None:
        for index, (given, _) in zip(self._indices, passed, strict=True):
            self.seen[index] = given


class TrainingTap(_PreTap):
    """Records `training` during a forward pass that a backward pass will follow."""

    def __init__(self, net: Net, *, deltas: bool) -> None:
        """`deltas`: also the norm of the gradient at pre."""
        super().__init__(net)
        self.training = TrainingSites()
        self._deltas = deltas

    def _see(self, passed: Sequence[Passed]) -> None:
        for index, norm in enumerate(self._norms):
            pre = self._pre(index, passed)
            saved = None if norm is None else saved_moments(norm, passed[index][1])
            self.training.pre.append(pre.detach() if saved is None else saved)
            if self._deltas:
                pre.register_hook(partial(_note_norm, self.training.delta_norms, index))  # type: ignore[no-untyped-call]


def _passing(forward: Callable[[Tensor], Tensor], passed: dict[int, Passed], place: int, x: Tensor) -> Tensor:
    """What goes through a module, noted."""
    out = forward(x)
    passed[place] = x, out
    return out


def _note_norm(norms: dict[int, Tensor], index: int, gradient: Tensor) -> None:
    norms[index] = torch.linalg.vector_norm(gradient)


def saved_moments(norm: torch.nn.Module, out: Tensor) -> SavedMoments | None:
    """What torch's batch norm keeps for its backward pass of what it saw.

    To be read before the backward pass, which lets go of it. These are private names of autograd, so everything about
    them is checked; None where anything is not as expected.
    """
    if type(norm) not in BATCH_NORMS or not norm.training:
        return None
    mean, inverse_sd = getattr(out.grad_fn, "_saved_result1", None), getattr(out.grad_fn, "_saved_result2", None)
    if mean is None or inverse_sd is None or not mean.shape == inverse_sd.shape == out.shape[1:2]:
        return None
    eps = norm.eps
    assert isinstance(eps, float)
    return SavedMoments(mean, inverse_sd, eps)
