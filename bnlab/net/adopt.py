"""A user's own `nn.Module` as a net: its blocks affine -> [norm] -> activation are found, its norms exchanged.

Forward passes show how the modules are connected: a module follows another one if its input is the very tensor that
the other returned. A sum or a reshape between two modules makes another tensor and breaks the connection. What is
trained must be what the user wrote, so a module whose norms cannot be exchanged, or whose passes cannot be measured,
without changing what it computes is refused by the name of its part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, is_

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.core.text import listed
from bnlab.net.build import Net, Site, finished, with_params
from bnlab.net.examine import examined
from bnlab.net.exchange import exchanged, refuse_leftovers, refuse_other_norms
from bnlab.net.trace import AFFINE, Call, Trace, sources
from bnlab.norms.base import DrawsNumbers

EXAMPLE = 'sites = {"stem": ("conv1", "bn1", "relu1"), ...}, with "" where there is no norm or no nonlinearity'
NAME_THEM = f"Name the blocks: {EXAMPLE}."
BATCH = 4
"""Examples in a pass that only shows how the parts are connected."""


def build_net(model: ModelSpec, norm: NormSpec, input_shape: tuple[int, ...], outputs: int, seed: int) -> Net:
    """The net of that name: bnlab's own models build it; a registered `nn.Module`, or a function of (input_shape,
    outputs) and its options that returns one, is `adopted`.

    Raises:
        UsageError: options that the model refuses.
    """
    constructor = MODELS.entry(model.name).constructor
    if not _of_a_module(constructor):
        net: Net = MODELS.build(model.name, model.options, input_shape, outputs, model, norm, seed)
        return net
    with torch.random.fork_rng(devices=[]):  # for its own random numbers
        torch.manual_seed(stream(seed, "init", model.name).initial_seed())
        module = MODELS.build(model.name, model.options, input_shape, outputs)
        if not isinstance(module, nn.Module):
            raise UsageError(f"model={model.name}", "is not an nn.Module", type(module).__name__)
        return adopted(module, model, norm, input_shape, outputs, seed)


def _of_a_module(constructor: Callable[..., object]) -> bool:
    if isinstance(constructor, type):
        return issubclass(constructor, nn.Module)
    kinds = [parameter.kind for parameter in inspect.signature(constructor).parameters.values()]
    return kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 2


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer block of the module, with its own norm."""

    name: str
    affine: Call
    norm: Call | None
    acting: Call | None
    norm_first: bool
    residual_sum: bool = False

    def site(self, name: str, module: nn.Module) -> Site:
        """The block as a site, with the norm that is now at the path of its own."""
        norm = None if self.norm is None else module.get_submodule(self.norm.path)
        return Site(
            name=name,
            affine=self.affine.part,
            norm=None if isinstance(norm, nn.Identity) else norm,
            activation=nn.Identity() if self.acting is None else self.acting.part,
            activation_call=0 if self.acting is None else self.acting.nth,
            norm_first=self.norm_first,
            params=(),
            residual_sum=self.residual_sum,
            channels_last=self.affine.has_channels_last,
        )


def adopted(
    module: nn.Module, model: ModelSpec, norm: NormSpec, input_shape: tuple[int, ...], outputs: int, seed: int
) -> Net:
    """The user's module as a net. Its own norms are places, which get the norm of the spec or none; `own` keeps them.
    Affine weights start from the `init` stream, unless `model.init` is `own`.

    The blocks are those of its attribute `sites`, {name: (affine, norm, activation)} by the paths of its parts, or else
    they are found.

    Raises:
        UsageError: a block that cannot be recognized, a part that cannot be measured or exchanged without changing what
            the module computes.
    """
    key = f"model={model.name}"
    if norm.position != "before":
        raise UsageError("norm.position", f"{key} says itself where its norms stand", norm.position, "Leave it out.")
    for name, default in (("activation", "relu"), ("bias", "auto"), ("dropout", 0)):
        if (given := getattr(model, name)) != default:
            raise UsageError(f"model.{name}", f"has no effect: {key} has its own", given, "Leave it out.")
    dtype = next((param.dtype for param in module.parameters()), torch.float32)
    x = torch.randn(BATCH, *input_shape, generator=stream(0, "probe", "adopted")).to(dtype).requires_grad_()
    seen = examined(module, x, key, outputs)
    blocks, places, notes = _blocks(module, seen, getattr(module, "sites", None), key)
    if norm.name != "own":
        refuse_other_norms(places, seen, norm, key)
    notes = [*exchanged(module, places, norm, seen, key), *notes]
    if norm.name != "own":
        refuse_leftovers(module, places, x, key)
    if model.init != "own":
        drawn = f"model.init={model.init} draws the weights of its {len(blocks)} sites and sets their biases to 0"
        notes.append(f"{drawn} (model.init=own keeps the module's)")
    paths = {call.path for block in blocks for call in (block.affine, block.norm) if call is not None}
    notes += _not_measured(module, paths)
    net = finished(module, _sites(blocks, module), model, seed)
    now = {call.path: module.get_submodule(call.path) for call in places if call.path not in paths}
    for path, part in now.items():
        if isinstance(part, DrawsNumbers):
            part.bind(seed, path)
    unsited = tuple(part for part in now.values() if not isinstance(part, nn.Identity))
    notes = [f"{key}: {note}" for note in notes]
    return replace(net, adopted=True, notes=tuple(notes), unsited=unsited, copies=seen.changes)


def as_it_is(module: nn.Module, x: Tensor, key: str, sites: object = None) -> Net:
    """A user's module as a net, with the weights and the norms that it has. It is examined on the batch x; `sites` name
    its blocks as the attribute does. After it, no part works in place.

    Raises:
        UsageError: no block can be measured, or the module cannot be.
    """
    x = x.detach().clone()
    seen = examined(module, x.requires_grad_() if x.is_floating_point() else x, key)
    blocks, places, notes = _blocks(module, seen, getattr(module, "sites", None) if sites is None else sites, key)
    paths = {call.path for block in blocks for call in (block.affine, block.norm) if call is not None}
    notes += _not_measured(module, paths)
    unsited = tuple(call.part for call in places if call.path not in paths)
    found = with_params(module, _sites(blocks, module))
    return Net(
        module=module,
        sites=found,
        adopted=True,
        notes=tuple(f"{key}: {note}" for note in notes),
        unsited=unsited,
        copies=seen.changes,
        input_dtype=x.dtype,
    )


def with_other_norms(module: nn.Module, norm: NormSpec, x: Tensor, key: str, seed: int) -> list[str]:
    """Put the norm, or none, in place of each norm of a user's module, which is examined on the batch x; every other
    part stays as it is. Returns what that changes, in words.

    Raises:
        UsageError: a norm that cannot be exchanged without changing what else the module computes.
    """
    in_place = [part for part in module.modules() if getattr(part, "inplace", False)]
    x = x.detach().clone()
    seen = examined(module, x.requires_grad_() if x.is_floating_point() else x, key)
    places = [call for call in seen.calls if call.is_norm]
    refuse_other_norms(places, seen, norm, key)
    notes = exchanged(module, places, norm, seen, key)
    refuse_leftovers(module, places, x, key)
    for call in places:
        if isinstance(part := module.get_submodule(call.path), DrawsNumbers):
            part.bind(seed, call.path)
    for part in in_place:
        part.inplace = True  # type: ignore[assignment]
    return notes


def _blocks(module: nn.Module, seen: Trace, named: object, key: str) -> tuple[list[_Block], list[Call], list[str]]:
    """The blocks, named or found; the calls of norms; and what there is to say.

    Raises:
        UsageError: a block that cannot be recognized, or a part in two places.
    """
    blocks, notes = (_named(named, seen, key), []) if named is not None else _found(seen, key)
    places = [call for call in seen.calls if call.is_norm]
    _refuse_shared(module, places, seen, key)
    return blocks, places, notes


def _sites(blocks: Sequence[_Block], module: nn.Module) -> list[Site]:
    digits = max(2, len(str(len(blocks) - 1)))
    return [block.site(f"L{index:0{digits}d}_{block.name}", module) for index, block in enumerate(blocks)]


def _found(seen: Trace, key: str) -> tuple[list[_Block], list[str]]:
    """A block for each affine map that is trained and can be measured, and what there is to say of them."""
    affine = [call for call in seen.calls if isinstance(call.part, AFFINE)]
    ends: dict[object, str] = {call.out.node: call.path for call in affine}
    before_others = {path for call in affine for path in sources(call.given.node, ends)}
    blocks, bare = [], []
    for call in affine:
        if call.path in seen.faults:
            continue
        before = seen.after(call, attrgetter("is_last_norm" if call.has_channels_last else "is_norm"))
        acting = seen.after(before or call, lambda one: one.acts)
        follows = before is None and not call.has_channels_last
        behind = seen.after(acting, lambda one: one.is_norm) if acting is not None and follows else None
        end = acting or before or call
        if acting is None and before is not None and before.path in seen.fused:
            problem = f"{before.path} is {before.kind}, and no nonlinearity is seen after it"
            named = f'keep the norms (norm=own) and name {before.path} with "" after it: {EXAMPLE}'
            raise UsageError(key, problem, remedy=f"Make the nonlinearity a part of its own, or {named}.")
        passed_on = seen.after(end, lambda one: isinstance(one.part, AFFINE)) is not None
        if acting is None and not passed_on and call.path in before_others:  # a head may have anything after it
            bare.append(end.path)
        blocks.append(_Block(call.path.replace(".", "_"), call, before or behind, acting, norm_first=behind is None))
    if not blocks:
        problem = "has no nn.Linear, nn.Conv1d or nn.Conv2d that is trained and can be measured"
        raise UsageError(key, problem, remedy=NAME_THEM)
    remedy = "to measure at a nonlinearity, make it a part, self.act = nn.ReLU(), and name the block in `sites`"
    notes = [f"no nonlinearity follows {listed(bare)} directly: act_in is their output itself ({remedy})"]
    return blocks, notes if bare else []


def _named(named: object, seen: Trace, key: str) -> list[_Block]:
    """The blocks as the user names them, in the order of the forward.

    Raises:
        UsageError: names that are no parts, or parts that are connected in another way.
    """
    if not isinstance(named, Mapping) or any(not isinstance(one, tuple) or len(one) != 3 for one in named.values()):
        raise UsageError(key, "its `sites` is not {name: (affine, norm, activation)}", remedy=f"Write {EXAMPLE}.")
    key = f"{key} sites"
    paths = dict.fromkeys(call.path for call in seen.calls if not call.is_function)
    there, order = f"There are: {', '.join(paths)}.", {id(call): index for index, call in enumerate(seen.calls)}
    found = []
    for name, block in named.items():
        for path in block:
            if path and path not in paths:
                raise UsageError(key, f"no part of {name} that a forward passes through", path, there)
        affine, norm = (seen.of(path)[0] if path else None for path in block[:2])
        if affine is None or affine.acts or affine.is_norm or next(affine.part.parameters(), None) is None:
            raise UsageError(key, f"{name} has no affine map with a weight", block[0], there)
        if fault := seen.faults.get(affine.path):
            raise UsageError(key, f"{affine.path} {fault}, and cannot be a site", remedy="Leave it out of `sites`.")
        after = [call for call in seen.of(block[2]) if order[id(call)] > order[id(affine)]] if block[2] else []
        follows = [call for call in after if call.given.key == (norm or affine).out.key]
        acting = next(iter(follows or after), None)
        if acting is not None and norm is not None and acting.path.startswith(f"{norm.path}."):
            problem = f"{acting.path} of {name} is inside of {norm.path}, and what it sees could not be measured"
            raise UsageError(key, problem, remedy='Write "" in its place: the site then ends with the norm.')
        norm_first = norm is None or acting is None or order[id(norm)] < order[id(acting)]
        end = norm if norm is not None and norm_first else affine
        adds = acting is not None and seen.after(end, partial(is_, acting)) is None
        found.append(_Block(name, affine, norm, acting, norm_first, residual_sum=adds))
    ends: dict[object, str] = {call.out.node: call.path for call in seen.calls if isinstance(call.part, AFFINE)}
    ends |= {block.affine.out.node: block.affine.path for block in found}
    for one in found:
        for call in (one.norm, one.acting):
            if call is not None and one.affine.path not in (before := sources(call.given.node, ends)):
                got = f"that of {listed(sorted(before))}" if before else "none of an affine map"
                problem = f"{call.path} of {one.name} does not see the output of {one.affine.path}, but {got}"
                raise UsageError(key, problem, remedy="Pair the parts as forward does.")
    return sorted(found, key=lambda one: order[id(one.affine)])


def _refuse_shared(module: nn.Module, places: Sequence[Call], seen: Trace, key: str) -> None:
    """Refuse what is in two places at once, and would be measured or exchanged in one.

    Raises:
        UsageError: names the parts.
    """
    remedy = "Give each place its own part."
    for call in places:
        if len(seen.of(call.path)) > 1:
            raise UsageError(key, f"{call.path} is used more than once in a forward", remedy=remedy)
    owners: dict[Tensor, list[str]] = {}
    for path, part in module.named_modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            owners.setdefault(tensor, []).append(f"{path}.{name}")
    for names in owners.values():
        if len(names) > 1:
            raise UsageError(key, f"{listed(names)} are one tensor, and measurements are of each part", remedy=remedy)


def _not_measured(module: nn.Module, measured: Collection[str]) -> list[str]:
    """What is trained and belongs to none of the measured parts, which are paths."""
    known = {id(param) for path in measured for param in module.get_submodule(path).parameters()}
    names = []
    for path, part in module.named_modules():
        own = [name for name, param in part.named_parameters(recurse=False) if param.requires_grad]
        others = [name for name in own if id(getattr(part, name)) not in known]
        if others and list(part.children()):
            names += [f"{path}.{name}".lstrip(".") for name in others]
        elif others:
            names.append(f"{path} ({type(part).__name__})")
    return [f"trained, but no site: {listed(names)}"] if names else []
