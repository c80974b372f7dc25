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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.dropout import Dropout
from bnlab.norms.base import DrawsNumbers

AtLeastOne = Annotated[int, Ge(1)]
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "linear": nn.Identity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer block. `params` names its parameters, the affine weight first, its norm's included; `norm_first`: the
    norm comes before the activation. `residual_sum`: the activation sees the sum of this site and a shortcut, in its
    call number `activation_call` of a forward. `channels_last`: the affine map gives [B, T, C], as in a transformer;
    what is measured of it is [B, C, T]."""

    name: str
    affine: nn.Module
    norm: nn.Module | None
    activation: nn.Module
    norm_first: bool
    params: tuple[str, ...]
    residual_sum: bool = False
    activation_call: int = 0
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Net:
    """A module, x [B, *input] -> outputs [B, K], and its L sites in the order of computation. `adopted`: the module is
    the user's own; `notes`: what was changed in it, in words; `unsited`: its norms that belong to no site; `copies`: it
    changes in place what parts give, and a tap hands it copies; `input_dtype`: of its inputs, if it is not that of its
    parameters."""

    module: nn.Module
    sites: tuple[Site, ...]
    adopted: bool = False
    notes: tuple[str, ...] = ()
    unsited: tuple[nn.Module, ...] = ()
    copies: bool = False
    input_dtype: torch.dtype | None = None

    @cached_property
    def params(self) -> dict[str, nn.Parameter]:
        """The module's parameters that are trained, by name. Listed once, since walking through a module's parts is
        slow."""
        return {name: param for name, param in self.module.named_parameters() if param.requires_grad}

    @cached_property
    def norms(self) -> dict[int, nn.Module]:
        """The norm of every site that has one, by the site's index."""
        return {index: site.norm for index, site in enumerate(self.sites) if site.norm is not None}

    @cached_property
    def every_norm(self) -> dict[int, nn.Module]:
        """`norms`, and those of no site, counted from L."""
        return self.norms | dict(enumerate(self.unsited, len(self.sites)))


class Residual(nn.Module):
    """x -> branch(x) + shortcut(x); the nonlinearity comes after it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


Parts = OrderedDict[str, nn.Module]


class Builder:
    """Builds a net layer by layer as one `nn.Sequential`, flat but for residual blocks, with the norm where the
    spec puts it.

    The initialization of a weight depends on the seed and its layer's name alone, so two nets that differ only in their
    norm start from the same affine weights.
    """

    def __init__(self, model: ModelSpec, norm: NormSpec, normalizable: int) -> None:
        """`normalizable`: how many layers may carry a norm; `norm.layers` counts them from 0."""
        if model.init == "own":
            raise UsageError("model.init", f"model={model.name} has no weights of its own", "own", "Use model.init=he.")
        self.model, self.norm = model, norm
        self._normed = normed_layers(norm, normalizable)
        self._digits = max(2, len(str(normalizable)))
        self._parts: Parts = OrderedDict()
        self._shortcut: Parts = OrderedDict()  # of the residual block that is being built
        self._after: Parts = OrderedDict()  # what comes after its sum
        self._sites: list[Site] = []  # their `params` are known at the end

    def plain(self, name: str, part: nn.Module) -> None:
        """Add a part without parameters that is not a site, such as pooling."""
        self._parts[name] = part

    def flatten(self, shape: tuple[int, ...]) -> int:
        """Flatten examples of this shape, if they are not flat. Returns how many features that makes."""
        if len(shape) > 1:
            self.plain("flatten", nn.Flatten())
        return math.prod(shape)

    def dense(self, features: int, widths: Iterable[int]) -> int:
        """Add a hidden dense layer of each width, the first one after so many features. Returns the last width."""
        for width in widths:
            self.hidden("fc", nn.Linear(features, width, bias=self.needs_bias()), width, dims=0)
            features = width
        return features

    def conv(
        self, kind: str, before: int, after: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, **place: bool
    ) -> None:
        """Add a hidden convolution, padded by kernel // 2; `place` as in `hidden`."""
        conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=self.needs_bias())
        self.hidden(kind, conv, after, dims=2, **place)

    def hidden(
        self, kind: str, affine: nn.Module, channels: int, dims: int, *, acts: bool = True, residual_sum: bool = False
    ) -> None:
        """Add a hidden site: the affine map with its norm, if this layer has one, and the nonlinearity if it `acts`.
        With `residual_sum` it ends the branch of a residual block: its nonlinearity comes after the sum."""
        norm = None
        if len(self._sites) in self._normed:
            norm = NORMS.build(self.norm.name, self.norm.options, channels, dims)
        activation = ACTIVATIONS[self.model.activation]() if acts else nn.Identity()
        self._site(kind, affine, norm, activation, residual_sum, drops=acts)

    def head(self, affine: nn.Module) -> None:
        """Add the last affine map, which is never normalized."""
        self._site("out", affine, None, nn.Identity(), False, drops=False)

    @contextmanager
    def residual(self, name: str) -> Iterator[None]:
        """What is added inside the `with` is the branch of a residual block, its last site one with `residual_sum`."""
        outer, self._parts = self._parts, OrderedDict()
        self._shortcut, self._after = OrderedDict(), OrderedDict()
        yield
        outer[name] = Residual(nn.Sequential(self._parts), nn.Sequential(self._shortcut))
        self._parts = outer
        self._parts.update(self._after)

    @contextmanager
    def shortcut(self) -> Iterator[None]:
        """What is added inside the `with` is the shortcut of the residual block; without it, that is the identity."""
        branch, self._parts = self._parts, self._shortcut
        yield
        self._parts = branch

    def needs_bias(self) -> bool:
        """Whether the affine map of the next hidden layer has a bias. `auto` drops it where the norm that follows
        subtracts the mean, so that a bias could not change anything (Ioffe & Szegedy 2015, section 3.2)."""
        if self.model.bias != "auto":
            return self.model.bias
        cancelled = len(self._sites) in self._normed and self.norm.position == "before"
        return not (cancelled and "cancels_bias" in NORMS.entry(self.norm.name).traits)

    def with_head(self, features: int, outputs: int, seed: int) -> Net:
        """Add a linear head after so many features, and build."""
        self.head(nn.Linear(features, outputs, bias=self.model.bias is not False))
        return self.build(seed)

    def build(self, seed: int) -> Net:
        """The net, initialized from the run's seed."""
        module = nn.Sequential(self._parts)
        for path, part in module.named_modules():
            if isinstance(part, Dropout):
                part.bind(seed, path)
        return finished(module, self._sites, self.model, seed)

    def _site(
        self,
        kind: str,
        affine: nn.Module,
        norm: nn.Module | None,
        activation: nn.Module,
        residual_sum: bool,
        *,
        drops: bool,
    ) -> None:
        name = f"L{len(self._sites):0{self._digits}d}_{kind}"
        norm_first = self.norm.position == "before"
        middle: list[tuple[str, nn.Module | None]] = [("norm", norm), ("act", activation)]
        parts = self._parts
        parts[f"{name}_affine"] = affine
        for role, part in middle if norm_first else reversed(middle):
            if residual_sum and role == "act":
                parts = self._after
            if part is not None:
                parts[f"{name}_{role}"] = part
        if self.model.dropout > 0 and drops:
            parts[f"{name}_drop"] = Dropout(self.model.dropout)
        self._sites.append(
            Site(
                name=name,
                affine=affine,
                norm=norm,
                activation=activation,
                norm_first=norm_first,
                params=(),
                residual_sum=residual_sum,
            )
        )


def finished(module: nn.Module, sites: Sequence[Site], model: ModelSpec, seed: int) -> Net:
    """The net of a module: affine weights initialized from the `init` stream of `seed`, norms that draw random numbers
    bound to the seed, sites with the names of their parameters."""
    initialize({f"{site.name}_affine": site.affine for site in sites}, model, seed)
    norms = {site.name: site.norm for site in sites if site.norm is not None}
    for name, norm in norms.items():
        if isinstance(norm, DrawsNumbers):
            norm.bind(seed, name)
    return Net(module=module.train(), sites=with_params(module, sites))


def with_params(module: nn.Module, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites with the names of their trained parameters in the module."""
    names = {param: name for name, param in module.named_parameters() if param.requires_grad}
    found = []
    for site in sites:
        owners = [site.affine] if site.norm is None else [site.affine, site.norm]
        weight = names[site.affine.get_parameter("weight")]
        params = [names[param] for owner in owners for param in owner.parameters() if param in names]
        found.append(replace(site, params=(weight, *(name for name in params if name != weight))))
    return tuple(found)


def image_shape(input_shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """(C, H, W).

    Raises:
        UsageError: the model is of images, and examples are not.
    """
    if len(input_shape) != 3:
        remedy = "Use model=mlp, or a data set of images."
        raise UsageError("model", f"a {model} needs images (C, H, W)", input_shape, remedy)
    return input_shape[0], input_shape[1], input_shape[2]


def each_stride(strides: int | list[int], count: int, layer: str) -> list[int]:
    """The stride of each of `count` layers.

    Raises:
        UsageError: a list of another length.
    """
    if isinstance(strides, int):
        return [strides] * count
    if len(strides) != count:
        remedy = f"Give one number, or {count} numbers as in model.channels."
        raise UsageError("model.strides", f"not one for each {layer}", strides, remedy)
    return strides


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


def change_of(own: nn.Module, layer: nn.Module | None) -> str:
    """What an exchange changes, in words; empty where the two are alike, or where the run has no norm."""
    if layer is None or type(own) is not type(layer):
        return "" if layer is None else type(own).__name__
    words = {"eps": "eps", "momentum": "momentum", "weight": "gamma", "bias": "beta"}
    values = {word: [_value(getattr(norm, name, None)) for norm in (own, layer)] for name, word in words.items()}
    return ", ".join(f"{word} {old} becomes {new}" for word, (old, new) in values.items() if old != new)


def _value(given: Tensor | float | None) -> str:
    if not isinstance(given, Tensor):
        return "none" if given is None else f"{given:g}"
    low, high = given.min().item(), given.max().item()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


@torch.no_grad()
def initialize(affine: Mapping[str, nn.Module], model: ModelSpec, seed: int) -> None:
    """Draw the weight of every named affine module from the `init` stream at its name; biases are 0.

    - `he`: N(0, 2 / fan_in) (He et al. 2015, eq. 10)
    - `glorot`: U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16)
    - `orthogonal`: orthonormal rows or columns (Saxe et al. 2014)
    - `gaussian`: N(0, init_std^2)
    - `lsuv`: as `orthogonal`; a run then scales it by its first batch (`net.lsuv`)
    - `own`: the weights and biases of a user's module, as they are

    All times `init_scale`.
    """
    for name, module in affine.items():
        weight = module.get_parameter("weight")
        draw(weight, model, stream(seed, "init", f"{name}.weight"))
        bias = getattr(module, "bias", None)
        if bias is not None and model.init != "own":
            bias.zero_()


def draw(weight: Tensor, model: ModelSpec, generator: torch.Generator) -> None:
    """Fill one weight [out, in] or [out, in, kH, kW] in place."""
    match model.init:
        case "he":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        case "glorot":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "orthogonal" | "lsuv":
            nn.init.orthogonal_(weight, generator=generator)
        case "gaussian":
            nn.init.normal_(weight, std=model.init_std, generator=generator)
    weight.mul_(model.init_scale)
