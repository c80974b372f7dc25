"""Base classes of norms that work per channel, and what norms may declare. Legend: B batch, C channels, H W space.

A norm is a module x [B, C] (dims 0), [B, C, T] (dims 1) or [B, C, H, W] (dims 2) -> the same shape. What
training changes beside the parameters is in buffers: a checkpoint keeps it, and a forward made for measuring restores
it (core/state.py).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.core.seeds import stream
from bnlab.core.state import Moments
from bnlab.norms import _beside

Eps = Annotated[float, Gt(0), Lt(math.inf)]
Momentum = Annotated[float, Ge(0), Le(1)] | None
"""Weight of the newest batch in running averages; None: the plain average of all batches so far."""
Width = Annotated[float, Ge(0), Lt(math.inf)]
Factor = Annotated[float, Ge(1), Lt(math.inf)]


AChannelNorm = TypeVar("AChannelNorm", bound="ChannelNorm")


class ChannelNorm(nn.Module):
    """gamma and beta per channel, where wanted, and running averages per channel, `running_<name>`."""

    num_batches_tracked: Tensor
    stacks: ClassVar[bool] = False
    """Whether the norms of K nets can be computed as one (`side_by_side`). It says so if its forward takes statistics
    over `over`, brings them into shape by `wide`, is elementwise otherwise, and draws no numbers but by a `Noise`."""
    in_turn: ClassVar[bool] = False
    """Whether K nets that have it can be trained at once with this norm computed for one after the other. It says so
    if its forward depends on nothing but x, its parameters and its buffers, and on what `bind` gave it."""

    def __init__(
        self,
        channels: int,
        dims: int,
        *,
        gamma: bool,
        beta: bool,
        momentum: float | None = None,
        running: Mapping[str, float] | None = None,
    ) -> None:
        """`running`: the names of the running averages and what each is before the first batch."""
        super().__init__()
        self.over: tuple[int, ...] = (0, *range(2, 2 + dims))
        self.shape: tuple[int, ...] = (1, channels, *(1 for _ in range(dims)))
        self.weight = nn.Parameter(torch.ones(channels)) if gamma else None
        self.bias = nn.Parameter(torch.zeros(channels)) if beta else None
        self.momentum = momentum
        for name, value in (running or {}).items():
            self.register_buffer(f"running_{name}", torch.full((channels,), value))
        if running:
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def wide(self, per_channel: Tensor) -> Tensor:  # [C] -> [1, C], [1, C, 1] or [1, C, 1, 1]
        """Values per channel in a shape that goes with x."""
        return per_channel.view(self.shape)

    def side_by_side(self: AChannelNorm) -> AChannelNorm:
        """A copy for K dense nets at once: x [K, B, C], what is per channel [K, C], a buffer of one number [K, 1]."""
        made = copy.deepcopy(self)
        made.over, made.shape = (1,), (-1, 1, self.shape[1])
        return made

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the batch per channel, each [C]."""
        mean = x.mean(dim=self.over)
        return mean, (x - self.wide(mean)).square().mean(dim=self.over)

    @torch.no_grad()
    def track(self, **found: Tensor) -> None:
        """Move the running averages towards what this batch showed, each [C]."""
        self.num_batches_tracked += 1
        for name, value in found.items():
            average = self.get_buffer(f"running_{name}")
            momentum = 1.0 / self.num_batches_tracked.to(value.dtype) if self.momentum is None else self.momentum
            average += momentum * (value - average)

    def affine(self, x_hat: Tensor) -> Tensor:
        """gamma * x_hat + beta."""
        if self.weight is not None:
            x_hat = x_hat * self.wide(self.weight)
        return x_hat if self.bias is None else x_hat + self.wide(self.bias)


class BatchMomentsNorm(ChannelNorm):
    """A `ChannelNorm` with the running mean and the running (unbiased) variance of batch norm."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, dims: int, *, eps: Eps, momentum: Momentum, affine: bool) -> None:
        running = {"mean": 0.0, "var": 1.0}
        super().__init__(channels, dims, gamma=affine, beta=affine, momentum=momentum, running=running)
        self.eps = eps

    def batch_norm(self, x: Tensor) -> Tensor:
        """torch's batch norm: in training with the statistics of x, which it tracks; in evaluation with the running
        ones."""
        momentum = 0.0
        if self.training:
            self.num_batches_tracked += 1
            if self.over == (1,):
                assert self.momentum is not None
                running = (self.running_mean, self.running_var)
                return _beside.batch_norm(x, *running, self.weight, self.bias, self.momentum, self.eps)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )

    def track_moments(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        """Track the mean of x and its unbiased variance; `var` is the biased one."""
        values = x.numel() // mean.numel()
        self.track(mean=mean, var=var * values / (values - 1))


class LpNorm(ChannelNorm, ABC):
    """The norms of Santurkar et al. 2018, section 3.3: subtract the batch mean and divide by the average lp norm of the
    channel, taken *before* the mean is subtracted,

        y = gamma * (x - mean(x)) / (norm_p(x) + eps) + beta,    norm_p(x) = mean(|x|^p)^(1/p),    norm_inf(x) = max|x|

    over the m = B (dense) or B H W (convolution) values of a channel. In evaluation, running averages of mean and norm
    replace both. A constant added to x changes the norm, so a bias before it has an effect.
    """

    stacks = True
    running_mean: Tensor
    running_norm: Tensor

    def __init__(self, channels: int, dims: int, *, eps: Eps, momentum: Momentum, affine: bool) -> None:
        running = {"mean": 0.0, "norm": 1.0}
        super().__init__(channels, dims, gamma=affine, beta=affine, momentum=momentum, running=running)
        self.eps = eps

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:  # [B, C] or [B, C, H, W] -> [C]
        """The average lp norm per channel."""

    def forward(self, x: Tensor) -> Tensor:
        mean, norm = self.running_mean, self.running_norm
        if self.training:
            mean, norm = x.mean(dim=self.over), self.norm(x)
            self.track(mean=mean, norm=norm)
        return self.affine((x - self.wide(mean)) / (self.wide(norm) + self.eps))

    def population(self) -> Population:
        """See `population_of`. An lp norm of many batches is not that of their values together (the largest of many
        values is larger), so it is the average of the batches' norms, as in training."""
        return _PopulationOfNorms(self)


@runtime_checkable
class DrawsNumbers(Protocol):
    """A norm that draws random numbers."""

    def bind(self, seed: int, name: str) -> None:
        """Take the seed of the run and the name of the site, before the first forward pass."""
        ...


@runtime_checkable
class OwnPopulation(Protocol):
    """A norm whose statistics of a population are not mean and variance of all values."""

    def population(self) -> Population:
        """What computes them."""
        ...


@runtime_checkable
class OwnStatistics(Protocol):
    """A norm that keeps mean and variance elsewhere than in `running_mean` and `running_var`."""

    def statistics_in_use(self) -> tuple[Tensor, Tensor | None]:
        """Mean and variance per channel, each [C], with which it normalizes in evaluation; None in place of a variance
        that it does not use."""
        ...


@runtime_checkable
class TakesStatistics(Protocol):
    """A norm that keeps the statistics of a population elsewhere than in `running_mean` and `running_var`."""

    def use_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Keep this mean and this unbiased variance, each [C]."""
        ...


def tensors_of(norm: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by name, without those of its parts."""
    return {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}


class Population(Protocol):
    """Inputs of a norm, from which its statistics for evaluation are computed."""

    def add(self, x: Tensor) -> None:
        """Add a batch of them, [B, C] or [B, C, H, W]."""
        ...

    def put(self) -> None:
        """Write the statistics of all of them into the norm's buffers."""
        ...


class _PopulationOfMoments:
    """Mean and (unbiased) variance of all values together."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm, self.moments = norm, Moments()

    def add(self, x: Tensor) -> None:
        self.moments.add(x)

    def put(self) -> None:
        mean, var = self.moments.mean, self.moments.unbiased
        if isinstance(self.norm, TakesStatistics):
            self.norm.use_statistics(mean, var)
            return
        kept = tensors_of(self.norm)
        kept["running_mean"].copy_(mean)
        if "running_var" in kept:
            kept["running_var"].copy_(var)


class _PopulationOfNorms:
    """Means and lp norms of batches, averaged; each batch counts by its values."""

    def __init__(self, norm: LpNorm) -> None:
        self.norm, self.values = norm, 0
        self.mean = self.size = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self.values += len(x)
        weight = len(x) / self.values
        self.mean = self.mean + weight * (x.mean(dim=self.norm.over) - self.mean)
        self.size = self.size + weight * (self.norm.norm(x) - self.size)

    def put(self) -> None:
        self.norm.running_mean.copy_(self.mean)
        self.norm.running_norm.copy_(self.size)


def population_of(norm: nn.Module) -> Population | None:
    """What gives a norm the statistics of a population: what its method `population()` returns, if it has one; else
    mean and variance of all values, for a norm with `running_mean`. They are written into `running_mean` and, where
    there is one, `running_var`, or passed to its method `use_statistics(mean, var)`, each [C] and the variance
    unbiased. None for a norm that keeps no running mean: it evaluates as before.

    >>> norm = nn.BatchNorm1d(1)
    >>> population = population_of(norm)
    >>> population.add(torch.tensor([[0.0], [2.0]])), population.add(torch.tensor([[7.0]])), population.put()
    (None, None, None)
    >>> norm.running_mean.tolist(), norm.running_var.tolist()
    ([3.0], [13.0])
    """
    if isinstance(norm, OwnPopulation):
        return norm.population()
    return _PopulationOfMoments(norm) if "running_mean" in tensors_of(norm) else None


def statistics_in_use(norm: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Mean and variance per channel, each [C], with which a norm normalizes in evaluation, from its buffers now: what
    its method `statistics_in_use()` returns, if it has one; else `running_mean` and, where there is one, `running_var`.
    None for a norm that keeps no mean.

    >>> [x.tolist() for x in statistics_in_use(nn.BatchNorm1d(1))], statistics_in_use(nn.LayerNorm(2))
    ([[0.0], [1.0]], None)
    """
    if isinstance(norm, OwnStatistics):
        return norm.statistics_in_use()
    kept = tensors_of(norm)
    return (kept["running_mean"], kept.get("running_var")) if "running_mean" in kept else None


class DrawsEachStep(nn.Module):
    """A part whose draws are a function of the run's seed, its name, and the number of training forwards so far (a
    buffer): the same after a resume, on every device, and in a pass made for measuring."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))
        self.bind(0, "")

    def bind(self, seed: int, name: str) -> None:
        """See `DrawsNumbers`."""
        self._seed, self._name = seed, name

    def draws(self, step: int | None = None) -> torch.Generator:
        """The generator of a step, by default the next one."""
        return stream(self._seed, "noise", self._name, int(self.steps) if step is None else step)


class Noise(DrawsEachStep):
    """The noise of Santurkar et al. 2018, algorithm 1, in training; nothing in evaluation.

    Each step draws for each channel a mean mu ~ U(-n_mu, n_mu) and a scale sigma ~ U(1, n_sigma), then for each element

        m ~ U(mu - r_mu, mu + r_mu),    s ~ N(sigma, r_sigma^2),    x <- s * x + m
    """

    stacks: ClassVar[bool] = True

    def __init__(self, *, n_mu: Width, n_sigma: Factor, r_mu: Width, r_sigma: Width) -> None:
        super().__init__()
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma
        self.of_nets: Sequence[Noise] = ()
        """Of noise side by side, that of each net; where there is none, they all are this one."""

    def side_by_side(self) -> Noise:
        """A copy for K dense nets at once, as that of a `ChannelNorm`."""
        return copy.deepcopy(self)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        scale, shift = self.draw(x.shape)
        self.steps += 1
        return scale.to(x) * x + shift.to(x)

    def draw(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """s and m of the next step, each of the given shape; always in float32. The channels' mu and sigma come first,
        so that they do not depend on the size of the batch."""
        if self.steps.ndim == 0:
            mu, sigma, shift, scale = self.numbers(int(self.steps), shape)
        else:  # [K, 1]: of K nets, each at its own step. Points of one net draw alike.
            keys = list(zip(self.of_nets or [self] * shape[0], self.steps.flatten().tolist(), strict=True))
            drawn = {(noise, step): noise.numbers(step, shape[1:]) for noise, step in dict.fromkeys(keys)}
            mu, sigma, shift, scale = (torch.stack(parts) for parts in zip(*map(drawn.__getitem__, keys), strict=True))
        mu = self.n_mu * (2 * mu - 1)
        sigma = 1 + (self.n_sigma - 1) * sigma
        return scale.mul_(self.r_sigma).add_(sigma), shift.mul_(2).sub_(1).mul_(self.r_mu).add_(mu)

    def numbers(self, step: int, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """What one net draws at a step: uniform numbers for mu and sigma of each channel, uniform ones of the given
        shape, and normal ones."""
        generator = self.draws(step)
        channels = (1, shape[1], *(1 for _ in shape[2:]))
        uniform = [torch.rand(size, generator=generator) for size in (channels, channels, shape)]
        return (*uniform, torch.randn(shape, generator=generator))
