"""What a probe is. Legend: B batch, C channels, H W space, L sites.

A probe declares what it `needs`; the observer gathers the union of all needs once per measured step and hands every
probe the same `Snapshot`. A probe only reads: a run with every probe on is bit for bit the run with none.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from bnlab.data.base import Split
from bnlab.models.base import Net
from bnlab.state import Objective, State

Need = Literal["training_sites", "pre_gradients", "before", "probe_sites"]
"""What can be asked for:

- `training_sites`: `Snapshot.training`, pre and act_in of the training forward itself
- `pre_gradients`: in addition, the loss's gradient at pre
- `before`: `Snapshot.before`, a copy of the state before the update
- `probe_sites`: `Snapshot.probe`, pre and act_in on the fixed probe batch, before the update
"""

Carry = dict[str, Tensor]
"""What a probe remembers from one measurement to the next; saved in checkpoints."""

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance per channel, each [C]."""

Metrics = dict[str, Tensor]
"""By journal name: a scalar, one value a site [L], or a vector."""


@dataclass(frozen=True, slots=True)
class Sites:
    """What one forward showed at each of the L sites: tensors [B, C] or [B, C, H, W].

    Where a site has no norm before its nonlinearity, `act_in` is the very tensor `pre`.
    """

    pre: list[Tensor] = field(default_factory=list)
    act_in: list[Tensor] = field(default_factory=list)
    saved: list[Moments | None] = field(default_factory=list)
    """What a batch norm computed of `pre` on the way, if it did and kept it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Both ends of one optimizer step: the net holds the weights after it, its `.grad`s the gradient of it.

    `training`, `before` and `probe` are there if a probe needs them.
    """

    step: int
    lr: float
    net: Net
    objective: Objective
    batch: Split
    training: Sites = field(default_factory=Sites)
    before: State = field(default_factory=lambda: State({}, {}))
    probe: Sites = field(default_factory=Sites)


class Probe(Protocol):
    """A measurement. `metrics` says what each journal name means; a name ending in `.*` stands for several."""

    needs: ClassVar[frozenset[Need]]
    metrics: ClassVar[Mapping[str, str]]

    def measure(self, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
        """The metrics of this step, and what to remember; `carry` is empty at the first measurement."""
        ...


class Tap(AbstractContextManager["Tap"]):
    """Records pre and act_in of every site during the forward passes inside the `with`; leaves no hook behind."""

    def __init__(self, net: Net, *, gradients: bool = False) -> None:
        """`gradients`: also keep the gradient at pre, readable as `.grad` after the backward pass."""
        self.net, self.gradients = net, gradients
        self.seen = Sites()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Tap:
        for site in self.net.sites:
            self._handles.append(site.affine.register_forward_hook(self._pre))
            self._handles.append(site.activation.register_forward_pre_hook(self._act_in))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _pre(self, module: torch.nn.Module, args: Any, output: Tensor) -> None:
        if self.gradients:
            output.retain_grad()
        self.seen.pre.append(output)

    def _act_in(self, module: torch.nn.Module, args: Any) -> None:
        index = len(self.seen.act_in)
        self.seen.act_in.append(args[0])
        self.seen.saved.append(saved_moments(self.net.sites[index].norm, self.seen.pre[index], args[0]))


def saved_moments(norm: torch.nn.Module | None, pre: Tensor, act_in: Tensor) -> Moments | None:
    """What torch's batch norm keeps for its backward pass: the channel means of its input and 1 / sqrt(var + eps).

    To be read before the backward pass, which lets go of them. These are private names of autograd, so everything about
    them is checked; None where anything is not as expected.
    """
    if not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) or not norm.training:
        return None
    node: Any = act_in.grad_fn
    if node is None or "BatchNormBackward" not in node.name() or getattr(node, "_saved_input", None) is not pre:
        return None
    mean, inverse_sd = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
    channels = (pre.shape[1],)
    if mean is None or inverse_sd is None or mean.shape != channels or inverse_sd.shape != channels:
        return None
    return mean, inverse_sd.pow(-2) - norm.eps
