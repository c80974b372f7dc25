"""What a probe is. Legend: B batch, C channels, H W space, L sites.

A probe declares what it `needs`; the observer gathers the union of all needs once per measured step and hands every
probe the same `Snapshot`. A probe only reads: a run with every probe on is bit for bit the run with none.

A pass made for measuring is that of the training step: at `Snapshot.before` it starts from the buffers and draws the
numbers (dropout masks, say) with which the step's own forward started. On the probe batch a net draws the same numbers
at every step, so that what differs is the net; noise that a norm injects is of the step, as a part of the norm.

Measuring has two halves. `measure` runs at once and reduces large tensors to small ones on the device, without waiting
for it. `summarize` runs later, on the host, for dozens of steps in a row: right after a training step, when none of its
data is in the caches, the same small operations take several times as long.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bnlab.core.state import Objective, State
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.net.wrap import Sites, TrainingSites

Need = Literal[
    "training_sites", "delta_norms", "weights_before", "before", "halves", "probe_sites", "training_data", "test_data"
]
"""What a probe can need:

- `training_sites`: `Snapshot.training`, pre of the training forward itself
- `delta_norms`: the same, with the norm of the loss's gradient at pre
- `weights_before`: `Snapshot.before`, of which only the affine weights are valid
- `before`: `Snapshot.before`, the whole state before the update
- `halves`: `Snapshot.halves`, where it costs less than that the probe computes it
- `probe_sites`: `Snapshot.probe`, pre and act_in on the fixed probe batch, before the update
- `training_data`: `Snapshot.data`, the whole training split
- `test_data`: `Snapshot.test`, the whole test split, shifted as `data.shift` says
"""

Raw = dict[str, Tensor]
"""What `measure` hands on: small tensors of any shape, on the device."""

HostArray = np.ndarray[Any, Any]
Key = TypeVar("Key", bound=Hashable)

Carry = dict[str, HostArray]
"""What a probe remembers from one measurement to the next; saved in checkpoints."""

Metrics = dict[str, HostArray]
"""By journal name: a scalar (), one value a site [L], or a vector."""

NO_DATA = Split(torch.empty(0), torch.empty(0))
"""In place of a split that no probe needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Both ends of one optimizer step: the net holds the weights after it, its `.grad`s the gradient of it.

    `training` to `test` are there if a probe needs them, and until the next measurement only.
    """

    step: int
    point: int | None
    """Which of the equally spaced measured steps this is; None for the extra ones at the start and the end."""
    lr: float
    seed: int
    """The run's, for a probe that draws from the `probe` stream."""
    net: Net
    objective: Objective
    batch: Split
    training: TrainingSites = field(default_factory=TrainingSites)
    halves: tuple[Tensor, Tensor] | None = None
    """The gradients of the two halves of the batch at `before`, each [P], where several nets were computed at once."""
    before: State = field(default_factory=lambda: State({}, {}))
    probe: Sites = field(default_factory=Sites)
    probe_batch: Split = NO_DATA
    """What `probe` is of, always there in a run."""
    data: Split = NO_DATA
    test: Split = NO_DATA


class Probe(Protocol):
    """A measurement. `metrics` says what each journal name means; a name ending in `.*` stands for several. A probe may
    have more: see `HasLayout`, `HasBatch` and `HasSplits`.

    A probe may also have `groups`, from names (without `.*`) to TensorBoard's groups of cards, such as `4_grad_norm`,
    which shows the median over the sites and every site. `group/card` is the median alone, or a scalar;
    `group/*_card` is the first, the middle and the last hidden site. Without an entry the group is `5_NAME`, of a
    scalar `5_other`.

    `only_reads = True` says that it makes no pass through the net: it reads weights, gradients, and what the training
    pass left. Around a loop of one's own it then costs less.
    """

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


@runtime_checkable
class HasLayout(Protocol):
    """A probe whose two halves share how the parts of `Raw` belong to the sites."""

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Any:
        """This layout, from a net and the shape of an example. Computed once at set-up, and passed to `measure` and
        `summarize` as their last argument."""
        ...


@runtime_checkable
class HasBatch(Protocol):
    """A probe that measures on the fixed probe batch."""

    batch: int
    """How many examples of it."""


@runtime_checkable
class HasSplits(Protocol):
    """A probe that measures parts of the training batch."""

    splits: int
    """Into how many parts it cuts the batch."""


@runtime_checkable
class HasLess(Protocol):
    """A probe of which a part computes losses of its own."""

    def without_losses(self) -> Probe:
        """The other part, for a training loop whose loss is not known."""
        ...


def layout_of(probe: object, net: Net, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The last arguments of the probe's two halves: its layout, if it has one."""
    return (probe.layout(net, input_shape),) if isinstance(probe, HasLayout) else ()


def not_infinite(x: HostArray) -> HostArray:
    """x, NaN where it is infinite: too large for its dtype, so that a quotient over it would be 0 and not null.

    >>> not_infinite(np.array([1.0, np.inf])).tolist()
    [1.0, nan]
    """
    return np.where(np.isinf(x), x.dtype.type(np.nan), x)


def by_site(values: HostArray, channels: Sequence[int]) -> list[HostArray]:
    """[..., C of all sites] as one [..., C] for each site, C 0 at a site that is not in it.

    >>> [part.tolist() for part in by_site(np.array([1, 2, 3]), [2, 0, 1])]
    [[1, 2], [], [3]]
    """
    return np.split(values, np.cumsum(channels)[:-1], axis=-1)


def to_host(tensors: Mapping[Key, Tensor]) -> dict[Key, HostArray]:
    """All of them as numpy arrays of their shapes; from a device in one transfer."""
    if all(x.device.type == "cpu" for x in tensors.values()):
        narrow = torch.bfloat16  # of a forward under autocast; numpy has no such type
        return {name: (x.float() if x.dtype == narrow else x).detach().numpy() for name, x in tensors.items()}
    flat = torch.cat([x.detach().reshape(-1) for x in tensors.values()]).cpu().numpy()
    ends = np.cumsum([x.numel() for x in tensors.values()])
    parts = zip(tensors.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: part.reshape(x.shape) for (name, x), part in parts}


def figures(probe: Probe, snapshot: Snapshot, carry: Carry) -> tuple[Metrics, Carry]:
    """`measure` and `summarize` in one call."""
    layout = layout_of(probe, snapshot.net, snapshot.batch.shape)
    return probe.summarize(to_host(probe.measure(snapshot, *layout)), carry, *layout)
