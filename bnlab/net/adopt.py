"""A user's own `nn.Module` as a net: its blocks affine -> [norm] -> activation are found, its norms exchanged.

One forward pass shows how the modules are connected: a module follows another one if its input is the very tensor that
the other returned. A sum, an `F.relu` or a reshape between two modules makes another tensor and breaks the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS, NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Net, Site, finished, normed_layers
from bnlab.net.wrap import BATCH_NORMS, version_of

AFFINE = (nn.Linear, nn.Conv2d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORM = (*BATCH_NORMS, nn.SyncBatchNorm, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm)
EXAMPLE = 'sites = {"stem": ("conv1", "bn1", "relu1"), ...}, with "" where there is no norm or no nonlinearity'


def build_net(model: ModelSpec, norm: NormSpec, input_shape: tuple[int, ...], outputs: int, seed: int) -> Net:
    """The net of that name: bnlab's own models build it; a registered `nn.Module`, called with (input_shape, outputs)
    and its options, is `adopted`.

    Raises:
        UsageError: options that the model refuses.
    """
    constructor = MODELS.entry(model.name).constructor
    if not (isinstance(constructor, type) and issubclass(constructor, nn.Module)):
        net: Net = MODELS.build(model.name, model.options, input_shape, outputs, model, norm, seed)
        return net
    with torch.random.fork_rng(devices=[]):  # for its own random numbers; affine weights are drawn again below
        torch.manual_seed(stream(seed, "init", model.name).initial_seed())
        module = MODELS.build(model.name, model.options, input_shape, outputs)
    return adopted(module, model, norm, input_shape, seed)


@dataclass(frozen=True, slots=True)
class _Call:
    """The input and the output of a part that has no parts of its own."""

    path: str
    part: nn.Module
    given: Tensor
    out: Tensor
    version: int


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer block of the module, with its own norm."""

    name: str
    affine: _Call
    norm: _Call | None
    acting: _Call | None
    norm_first: bool

    def site(self, name: str, norms: Mapping[str, nn.Module | None]) -> Site:
        """The block as a site, with the norm that is now at the path of its own."""
        before = self.norm if self.norm is not None and self.norm_first else self.affine
        return Site(
            name=name,
            affine=self.affine.part,
            norm=None if self.norm is None else norms[self.norm.path],
            activation=nn.Identity() if self.acting is None else self.acting.part,
            norm_first=self.norm_first,
            params=(),
            residual_sum=self.acting is not None and self.acting.given is not before.out,
        )


def adopted(module: nn.Module, model: ModelSpec, norm: NormSpec, input_shape: tuple[int, ...], seed: int) -> Net:
    """The user's module as a net. Its own norms are places, which get the norm of the spec or none. Affine weights
    start from the `init` stream.

    The blocks are those of its attribute `sites`, {name: (affine, norm, activation)} by the paths of its parts, or else
    they are found.

    Raises:
        UsageError: a block that cannot be recognized, a part that is used twice, norms that cannot be exchanged.
    """
    key = f"model={model.name}"
    if norm.position != "before":
        raise UsageError("norm.position", f"{key} says itself where its norms stand", norm.position, "Leave it out.")
    calls, output = _calls(module, input_shape, key)
    named = getattr(module, "sites", None)
    blocks = _named(named, calls, key) if named is not None else _found(calls, output, key)
    norms = _exchanged(module, [block.norm for block in blocks if block.norm is not None], norm, key)
    digits = max(2, len(str(len(blocks) - 1)))
    sites = [block.site(f"L{index:0{digits}d}_{block.name}", norms) for index, block in enumerate(blocks)]
    return finished(module, sites, model, seed)


def _calls(module: nn.Module, input_shape: tuple[int, ...], key: str) -> tuple[dict[str, _Call], object]:
    """The call of every part in one forward pass, by its path and in the order of computation; and the outputs."""
    calls: dict[str, _Call] = {}
    twice: list[str] = []
    paths = {part: path for path, part in module.named_modules() if not list(part.children())}

    def note(part: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if paths[part] in calls and (_acts(part) or next(part.parameters(), None) is not None):
            twice.append(paths[part])
        calls[paths[part]] = _Call(paths[part], part, args[0], out, version_of(out))

    for part in paths:
        if getattr(part, "inplace", False):
            part.inplace = False  # it would overwrite what is measured
    handles = [part.register_forward_hook(note) for part in paths]
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, *input_shape))
    except Exception as error:
        problem = " ".join(str(error).split())
        raise UsageError(key, f"{type(error).__name__} in a forward of 2 x {list(input_shape)}: {problem}") from error
    finally:
        for handle in handles:
            handle.remove()
    if twice:
        raise UsageError(key, f"{twice[0]} is used more than once in a forward", remedy="Give each place its own part.")
    for call in calls.values():
        if version_of(call.out) != call.version:
            problem = f"what {call.path} gives is changed in place, and could not be measured"
            raise UsageError(key, problem, remedy="Write x = x + y for x += y, and relu for relu_.")
    return calls, output


def _acts(part: nn.Module) -> bool:
    return type(part).__module__ == "torch.nn.modules.activation"


def _is_norm(part: nn.Module) -> bool:
    return isinstance(part, NORM)


def _found(calls: Mapping[str, _Call], output: object, key: str) -> list[_Block]:
    """A block for each affine map."""
    followers: dict[int, list[_Call]] = {}
    for call in calls.values():
        followers.setdefault(id(call.given), []).append(call)

    def after(call: _Call, wanted: Callable[[nn.Module], bool]) -> _Call | None:
        return next((one for one in followers.get(id(call.out), []) if wanted(one.part)), None)

    blocks = []
    for call in (call for call in calls.values() if isinstance(call.part, AFFINE)):
        before = after(call, _is_norm)
        acting = after(before or call, _acts)
        behind = after(acting, _is_norm) if acting is not None and before is None else None
        last = acting or before or call
        passed_on = any(isinstance(one.part, AFFINE) for one in followers.get(id(last.out), []))
        if acting is None and last.out is not output and not passed_on:
            problem = (
                f"no nonlinearity is seen after {last.path}: what it gives goes into something that is not a part, as "
                "a sum or F.relu, or is pooled first"
            )
            remedy = f"Use nn.ReLU() and the like, or name the blocks in the class: {EXAMPLE}."
            raise UsageError(key, problem, remedy=remedy)
        blocks.append(_Block(call.path.replace(".", "_"), call, before or behind, acting, norm_first=behind is None))
    if not blocks:
        raise UsageError(key, "has no nn.Linear and no nn.Conv2d", remedy=f"Name its blocks in the class: {EXAMPLE}.")
    places = {block.norm.path for block in blocks if block.norm is not None}
    for call in calls.values():
        if _is_norm(call.part) and call.path not in places:
            remedy = f"Name the blocks in the class: {EXAMPLE}."
            raise UsageError(key, f"{call.path} follows no affine map", remedy=remedy)
    return blocks


def _named(named: object, calls: Mapping[str, _Call], key: str) -> list[_Block]:
    """The blocks as the user names them."""
    if not isinstance(named, Mapping) or any(not isinstance(one, tuple) or len(one) != 3 for one in named.values()):
        raise UsageError(key, "its `sites` is not {name: (affine, norm, activation)}", remedy=f"Write {EXAMPLE}.")
    found = []
    order, there = list(calls), f"There are: {', '.join(calls)}."
    for name, block in named.items():
        for path in block:
            if path and path not in calls:
                raise UsageError(f"{key} sites", f"no part of {name} that a forward passes through", path, there)
        affine, norm, acting = (calls[path] if path else None for path in block)
        if affine is None or "weight" not in dict(affine.part.named_parameters()):
            raise UsageError(f"{key} sites", f"{name} has no affine map with a weight", block[0], there)
        norm_first = norm is None or acting is None or order.index(norm.path) < order.index(acting.path)
        found.append(_Block(name, affine, norm, acting, norm_first))
    return found


def _exchanged(module: nn.Module, places: Sequence[_Call], norm: NormSpec, key: str) -> dict[str, nn.Module | None]:
    """Put the norm of the spec, or none, in place of each of the module's own. Returns what is there now, by path."""
    if not places and norm.name != "none":
        remedy = "Put nn.BatchNorm2d or nn.BatchNorm1d where norms may stand, or use norm=none."
        raise UsageError("norm", f"{key} has no norm that could be exchanged", norm.name, remedy)
    normed = normed_layers(norm, len(places)) if norm.name != "none" else frozenset()
    exchanged: dict[str, nn.Module | None] = {}
    for index, place in enumerate(places):
        dims = place.given.ndim - 2
        if dims not in (0, 2):
            raise UsageError(key, f"{place.path} sees {place.given.ndim} dimensions", remedy="Norms take 2 or 4.")
        layer = NORMS.build(norm.name, norm.options, place.given.shape[1], dims) if index in normed else None
        parent, _, attribute = place.path.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer or nn.Identity())
        exchanged[place.path] = layer
    return exchanged
