"""What a net is to bnlab: a module and its named *sites*. Legend: B batch, C channels, H W space, L sites.

A site is one layer block, affine -> [norm] -> activation, with three measuring points:

    pre      the affine output: what the norm sees
    act_in   what the nonlinearity sees (Ioffe & Szegedy 2015, figure 1, plot this)
    out      what the next layer sees

The head, an affine map with nothing after it, is the last site. Between norm and nonlinearity of the last site of a
residual block the shortcut is added: pre is what the norm sees, act_in the sum (docs/decisions/014).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.init import initialize

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "linear": nn.Identity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer block. `params` names its parameters, the affine weight first, its norm's included; `norm_first` says
    whether the norm stands before the activation, `joins` whether the activation sees the sum of this site and a
    shortcut."""

    name: str
    affine: nn.Module
    norm: nn.Module | None
    activation: nn.Module
    norm_first: bool
    params: tuple[str, ...]
    joins: bool = False


@dataclass(frozen=True, kw_only=True)
class Net:
    """A module, x [B, *input] -> outputs [B, K], and its L sites in the order of computation."""

    module: nn.Module
    sites: tuple[Site, ...]

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """The module's parameters by name, listed once: walking through a module's parts takes its time."""
        return dict(self.module.named_parameters())


class Residual(nn.Module):
    """x -> branch(x) + shortcut(x); the nonlinearity comes after it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.branch(x) + self.shortcut(x)
        return out


Parts = OrderedDict[str, nn.Module]


@dataclass(frozen=True, slots=True)
class _Block:
    """What a residual block has beside its branch: its shortcut, and what comes after the sum."""

    shortcut: Parts = field(default_factory=OrderedDict)
    after: Parts = field(default_factory=OrderedDict)


class Builder:
    """Puts a net together layer by layer as one `nn.Sequential`, flat but for residual blocks, with the norm where the
    spec wants it.

    The initialization of a weight depends on the seed and its layer's name alone, so two nets that differ only in their
    norm start from the same affine weights.
    """

    def __init__(self, model: ModelSpec, norm: NormSpec, normalizable: int) -> None:
        """`normalizable`: how many layers may carry a norm; `norm.layers` counts them from 0."""
        self.model, self.norm = model, norm
        self._normed = normed_layers(norm, normalizable)
        self._digits = max(2, len(str(normalizable)))
        self._parts: Parts = OrderedDict()
        self._block: _Block | None = None
        self._sites: list[Site] = []  # their `params` are known at the end

    def plain(self, name: str, part: nn.Module) -> None:
        """A part without parameters that is no site, such as pooling."""
        self._parts[name] = part

    def hidden(
        self, kind: str, affine: nn.Module, channels: int, dims: int, *, acts: bool = True, joins: bool = False
    ) -> None:
        """A hidden site: the affine map with its norm, if this layer has one, and the nonlinearity, unless it `acts`
        not. One that `joins` ends the branch of a residual block: its nonlinearity comes after the sum."""
        layer = None
        if len(self._sites) in self._normed:
            options = self.norm.options
            layer = NORMS.build(self.norm.name, options, channels, dims)
        activation = ACTIVATIONS[self.model.activation]() if acts else nn.Identity()
        self._site(kind, affine, layer, activation, joins=joins)

    def head(self, affine: nn.Module) -> None:
        """The last affine map, never normalized."""
        self._site("out", affine, None, nn.Identity())

    @contextmanager
    def residual(self, name: str) -> Iterator[None]:
        """What is added inside the `with` is the branch of a residual block, its last site one that joins."""
        outer, self._parts, self._block = self._parts, OrderedDict(), _Block()
        yield
        outer[name] = Residual(nn.Sequential(self._parts), nn.Sequential(self._block.shortcut))
        outer.update(self._block.after)
        self._parts, self._block = outer, None

    @contextmanager
    def shortcut(self) -> Iterator[None]:
        """What is added inside the `with` is the shortcut of the residual block; without it, that is the identity."""
        assert self._block is not None, "a shortcut belongs to a residual block"
        branch, self._parts = self._parts, self._block.shortcut
        yield
        self._parts = branch

    def needs_bias(self) -> bool:
        """Whether the affine map of the next hidden layer has a bias. `auto` drops it where the norm that follows takes
        the mean away, so that a bias could not change anything (Ioffe & Szegedy 2015, section 3.2)."""
        if self.model.bias != "auto":
            return self.model.bias
        cancelled = len(self._sites) in self._normed and self.norm.position == "before"
        return not (cancelled and "cancels_bias" in NORMS.entry(self.norm.name).traits)

    def build(self, seed: int) -> Net:
        """The net, initialized from the `init` stream of `seed`. A norm that draws numbers has a method `bind(seed,
        name)`, and is told the seed and its site's name."""
        module = nn.Sequential(self._parts)
        names = {param: name for name, param in module.named_parameters()}
        initialize({f"{site.name}_affine": site.affine for site in self._sites}, self.model, seed)
        for site in self._sites:
            if (bind := getattr(site.norm, "bind", None)) is not None:
                bind(seed, site.name)
        return Net(module=module, sites=tuple(with_params(site, names) for site in self._sites))

    def _site(
        self, kind: str, affine: nn.Module, layer: nn.Module | None, activation: nn.Module, *, joins: bool = False
    ) -> None:
        name = f"L{len(self._sites):0{self._digits}d}_{kind}"
        norm_first = self.norm.position == "before"
        middle: list[tuple[str, nn.Module | None]] = [("norm", layer), ("act", activation)]
        own: Parts = OrderedDict({f"{name}_affine": affine})
        for role, part in middle if norm_first else reversed(middle):
            if joins and role == "act":
                assert self._block is not None, "there is no shortcut to join"
                self._parts.update(own)
                own = self._block.after
            if part is not None:
                own[f"{name}_{role}"] = part
        if not joins:
            self._parts.update(own)
        self._sites.append(
            Site(
                name=name,
                affine=affine,
                norm=layer,
                activation=activation,
                norm_first=norm_first,
                params=(),
                joins=joins,
            )
        )


def with_params(site: Site, names: Mapping[nn.Parameter, str]) -> Site:
    """The site with the names of its parameters."""
    owners = [site.affine] if site.norm is None else [site.affine, site.norm]
    return replace(site, params=tuple(names[param] for owner in owners for param in owner.parameters()))


def normed_layers(norm: NormSpec, normalizable: int) -> frozenset[int]:
    """Which of the layers 0 to `normalizable` - 1 carry the norm: all, every n-th (the n-th, the 2n-th, ...), or a
    list.

    Raises:
        UsageError: a listed layer that does not exist, or `every` that leaves none.
    """
    if norm.layers != "all":
        for index in norm.layers:
            if index >= normalizable:
                last = f"0 to {normalizable - 1}" if normalizable else "none"
                raise UsageError(
                    "norm.layers", f"layer {index} does not exist", list(norm.layers), f"This net has: {last}."
                )
        if norm.every != 1:
            raise UsageError("norm.every", "cannot go with a list in norm.layers", norm.every, "Use one of the two.")
        return frozenset(norm.layers)
    if norm.every > max(1, normalizable):
        raise UsageError(
            "norm.every", f"no layer is the {norm.every}th of {normalizable}", norm.every, "Use a smaller one."
        )
    return frozenset(range(norm.every - 1, normalizable, norm.every))


def site_shapes(net: Net, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shape of one example at `pre` of every site: (C,) or (C, H, W). Leaves the net as it was. Norms keep
    shapes and are passed by, since some refuse what a single example has."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, args: object, output: torch.Tensor) -> None:
        shapes[module] = tuple(output.shape[1:])

    norms = [site.norm for site in net.sites if site.norm is not None]
    own = [vars(norm).get("forward") for norm in norms]
    for norm in norms:
        vars(norm)["forward"] = _same
    handles = [site.affine.register_forward_hook(note) for site in net.sites]
    was_training = net.module.training
    try:
        net.module.eval()
        with torch.no_grad():
            param = next(net.module.parameters())
            net.module(torch.zeros(1, *input_shape, dtype=param.dtype, device=param.device))
    finally:
        net.module.train(was_training)
        for handle in handles:
            handle.remove()
        for norm, forward in zip(norms, own, strict=True):
            del vars(norm)["forward"]
            if forward is not None:  # somebody else's wrapper
                vars(norm)["forward"] = forward
    return [shapes[site.affine] for site in net.sites]


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def refuse_single_values(net: Net, input_shape: tuple[int, ...], norm: NormSpec, batch_size: int, key: str) -> None:
    """Statistics of one value are that value and a variance of 0: refuse them, over the batch and over space.

    Raises:
        UsageError: naming `key`, the setting that gives the batch size; or the norm, where no batch would be enough.
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
