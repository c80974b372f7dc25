"""What a probe is. Legend: B batch, C channels, H W space, L sites.

A probe declares what it `needs`; the observer gathers the union of all needs once per measured step and hands every
probe the same `Snapshot`. A probe only reads: a run with every probe on is bit for bit the run with none.

Measuring has two halves. `measure` runs at once and reduces large tensors to small ones on the device, without waiting
for it. `summarize` runs later, on the host, for dozens of steps in a row: right after a training step, with nothing
of it in the caches, the same small operations would take several times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bnlab.data.base import Split
from bnlab.models.base import Net
from bnlab.state import Objective, State

Need = Literal["training_sites", "pre_gradients", "weights_before", "before", "probe_sites"]
"""What can be asked for:

- `training_sites`: `Snapshot.training`, pre of the training forward itself (not act_in: keeping that costs memory)
- `pre_gradients`: the same, and the loss's gradient at pre, as its `.grad`
- `weights_before`: `Snapshot.before`, of which only the affine weights are valid
- `before`: `Snapshot.before`, the whole state before the update
- `probe_sites`: `Snapshot.probe`, pre and act_in on the fixed probe batch, before the update
"""

Raw = dict[str, Tensor]
"""What `measure` hands on: small tensors of any shape, on the device."""

HostArray = np.ndarray[Any, Any]

Carry = dict[str, HostArray]
"""What a probe remembers from one measurement to the next; saved in checkpoints."""

Metrics = dict[str, HostArray]
"""By journal name: a scalar (), one value a site [L], or a vector."""

BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


class SavedMoments(NamedTuple):
    """Of a batch norm's input: the mean and 1 / sqrt(variance + eps) per channel, each [C]."""

    mean: Tensor
    inverse_sd: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Sites:
    """What one forward showed at each of the L sites: tensors [B, C] or [B, C, H, W].

    Where a site has no norm before its nonlinearity, `act_in` is the very tensor `pre`.
    """

    pre: list[Tensor] = field(default_factory=list)
    act_in: list[Tensor] = field(default_factory=list)
    saved: list[SavedMoments | None] = field(default_factory=list)
    """What a batch norm computed of `pre` on the way, if it did and kept it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Both ends of one optimizer step: the net holds the weights after it, its `.grad`s the gradient of it.

    `training`, `before` and `probe` are there if a probe needs them, and until the next measurement only.
    """

    step: int
    point: int | None
    """Which of the equally spaced measured steps this is; None for the extra ones at the start and the end."""
    lr: float
    net: Net
    objective: Objective
    batch: Split
    training: Sites = field(default_factory=Sites)
    before: State = field(default_factory=lambda: State({}, {}))
    probe: Sites = field(default_factory=Sites)


class Probe(Protocol):
    """A measurement. `metrics` says what each journal name means; a name ending in `.*` stands for several."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be in the snapshot."""
        ...

    metrics: ClassVar[Mapping[str, str]]

    def measure(self, snapshot: Snapshot) -> Raw:
        """The first half, on the device. What it returns must not change later: no references to weights."""
        ...

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        """The second half: the metrics, and what to remember; `carry` is empty at the first measurement."""
        ...


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, HostArray]:
    """All of them as numpy arrays of their shapes; from a device in one transfer."""
    if all(x.device.type == "cpu" for x in tensors.values()):
        return {name: x.detach().numpy() for name, x in tensors.items()}
    flat = torch.cat([x.detach().reshape(-1) for x in tensors.values()]).cpu().numpy()
    ends = np.cumsum([x.numel() for x in tensors.values()])
    parts = zip(tensors.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: part.reshape(x.shape) for (name, x), part in parts}


def figures(probe: Probe, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
    """Both halves at once."""
    return probe.summarize(to_host(probe.measure(snapshot)), carry)


class Tap(AbstractContextManager["Tap"]):
    """Records pre and act_in of every site during one forward pass inside the `with`; `seen` is whole after it.

    Meanwhile one module of each site has its `forward` wrapped: its norm if that stands between pre and act_in, else
    its activation. A wrapper costs a tenth of a module hook, and nothing at all outside the `with`.
    """

    def __init__(self, net: Net, *, act_in: bool = True, gradients: bool = False) -> None:
        """`act_in`: keep that too. `gradients`: keep the gradient at pre, readable as `.grad` after the backward
        pass."""
        self.seen = Sites()
        self._act_in, self._gradients = act_in, gradients
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
        if kind is not None:
            return
        seen = self.seen
        for norm, (pre, out) in zip(self._norms, self._passed, strict=True):
            seen.pre.append(pre)
            if self._act_in:
                seen.act_in.append(pre if norm is None else out)
            seen.saved.append(None if norm is None else saved_moments(norm, out))
            if self._gradients:
                pre.retain_grad()
        self._passed.clear()


def _passing(forward: Callable[[Tensor], Tensor], passed: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """What goes through a module, noted."""
    out = forward(x)
    passed.append((x, out))
    return out


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
