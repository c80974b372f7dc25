"""Seeing what passes through a net's sites. Legend: B batch, C channels, H W space, L sites.

During a forward pass inside the `with`, one module of each site has its `forward` wrapped: its norm if that stands
between pre and act_in, else its activation; or its affine map. A wrapper costs a tenth of a module hook, and nothing at
all outside the `with`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab.models.base import Net

BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Sites:
    """What one forward showed at each of the L sites: tensors [B, C] or [B, C, H, W].

    Where a site has no norm before its nonlinearity, `act_in` is the very tensor `pre`.
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


class Tap(AbstractContextManager["Tap"]):
    """Records pre and act_in of every site during one forward pass; `sites` is whole after the `with`."""

    def __init__(self, net: Net) -> None:
        self.sites = Sites()
        self._norms = [site.norm if site.norm_first else None for site in net.sites]
        self._wrapped = [norm or site.activation for norm, site in zip(self._norms, net.sites, strict=True)]
        self._passed: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Tap:
        self._own = [vars(module).get("forward") for module in self._wrapped]
        for module in self._wrapped:
            module.__dict__["forward"] = partial(_passing, module.forward, self._passed)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for module, own in zip(self._wrapped, self._own, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:  # somebody else's wrapper, from before
                module.__dict__["forward"] = own
        if kind is None:
            for norm, (pre, out) in zip(self._norms, self._passed, strict=True):
                self._see(norm, pre, out)
        self._passed.clear()

    def _see(self, norm: torch.nn.Module | None, pre: Tensor, out: Tensor) -> None:
        self.sites.pre.append(pre)
        self.sites.act_in.append(pre if norm is None else out)


class AffineTap(Tap):
    """Records what every site's affine map is given and what it returns, `inputs` and `outputs`, during one forward
    pass; `sites` stays empty."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._wrapped = [site.affine for site in net.sites]

    def _see(self, norm: torch.nn.Module | None, x: Tensor, out: Tensor) -> None:
        self.inputs.append(x)
        self.outputs.append(out)


class NormTap(Tap):
    """Records what the norm of every site sees during one forward pass; None at a site without one."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.seen: list[Tensor | None] = []
        self._has_norm = [site.norm is not None for site in net.sites]

    def _see(self, norm: torch.nn.Module | None, pre: Tensor, out: Tensor) -> None:
        has_norm = self._has_norm[len(self.seen)]
        self.seen.append(None if not has_norm else out if norm is None else pre)  # after the nonlinearity, or before


class TrainingTap(Tap):
    """Records `training` during a forward pass that a backward pass will follow."""

    def __init__(self, net: Net, *, deltas: bool) -> None:
        """`deltas`: also the norm of the gradient at pre."""
        super().__init__(net)
        self.training = TrainingSites()
        self._deltas = deltas

    def _see(self, norm: torch.nn.Module | None, pre: Tensor, out: Tensor) -> None:
        saved = None if norm is None else saved_moments(norm, out)
        index = len(self.training.pre)
        self.training.pre.append(pre.detach() if saved is None else saved)
        if self._deltas:
            pre.register_hook(partial(_note_norm, self.training.delta_norms, index))  # type: ignore[no-untyped-call]


def _passing(forward: Callable[[Tensor], Tensor], passed: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """What goes through a module, noted."""
    out = forward(x)
    passed.append((x, out))
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
