"""A user's own `nn.Module` as a net: its blocks affine -> [norm] -> activation are found, its norms exchanged.

Forward passes show how the modules are connected: a module follows another one if its input is the very tensor that
the other returned. A sum or a reshape between two modules makes another tensor and breaks the connection. What is
trained must be what the user wrote, so a module whose norms cannot be exchanged, or whose passes cannot be measured,
without changing what it computes is refused by the name of its part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import MODELS, NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.core.state import Mode, outputs_now
from bnlab.core.text import listed
from bnlab.net.build import Net, Site, finished, normed_layers
from bnlab.net.trace import AFFINE, NORM, Call, Trace, first_difference, sources, trace
from bnlab.net.wrap import version_of

EXAMPLE = 'sites = {"stem": ("conv1", "bn1", "relu1"), ...}, with "" where there is no norm or no nonlinearity'
NAME_THEM = f"Name the blocks in the class: {EXAMPLE}."
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

    def site(self, name: str, module: nn.Module) -> Site:
        """The block as a site, with the norm that is now at the path of its own."""
        norm = None if self.norm is None else module.get_submodule(self.norm.path)
        before = self.norm if self.norm is not None and self.norm_first else self.affine
        return Site(
            name=name,
            affine=self.affine.part,
            norm=None if isinstance(norm, nn.Identity) else norm,
            activation=nn.Identity() if self.acting is None else self.acting.part,
            activation_call=0 if self.acting is None else self.acting.nth,
            norm_first=self.norm_first,
            params=(),
            residual_sum=self.acting is not None and self.acting.given is not before.out,
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
    for name, default in (("activation", "relu"), ("bias", "auto")):
        if (given := getattr(model, name)) != default:
            raise UsageError(f"model.{name}", f"has no effect: {key} has its own", given, "Leave it out.")
    x = torch.randn(BATCH, *input_shape, generator=stream(0, "probe", "adopted")).requires_grad_()
    seen = _pass(module, x, outputs, key)
    named = getattr(module, "sites", None)
    blocks = _named(named, seen, key) if named is not None else _found(seen, key)
    _refuse_unmeasurable(module, blocks, seen, key)
    if norm.name != "own":
        _refuse_other_norms(blocks, seen, named is not None, key)
    places = [block.norm for block in blocks if block.norm is not None]
    notes = _exchanged(module, places, norm, key)
    if norm.name != "own":
        _refuse_leftovers(module, places, x, key)
    if model.init != "own":
        drawn = f"model.init={model.init} draws the weights of its {len(blocks)} sites and sets their biases to 0"
        notes.append(f"{drawn} (model.init=own keeps the module's)")
    notes += _not_measured(module, blocks)
    digits = max(2, len(str(len(blocks) - 1)))
    sites = [block.site(f"L{index:0{digits}d}_{block.name}", module) for index, block in enumerate(blocks)]
    net = finished(module, sites, model, seed)
    return replace(net, adopted=True, notes=tuple(f"{key}: {note}" for note in notes))


def _pass(module: nn.Module, x: Tensor, outputs: int, key: str) -> Trace:
    """A pass in evaluation, which shows how the parts are connected. After it, no part works in place.

    Raises:
        UsageError: a forward that fails, outputs that are not one tensor [B, outputs], results that are changed in
            place, a forward in training that leaves out a part.
    """
    in_place = [part for part in module.modules() if getattr(part, "inplace", False)]
    try:
        written = [trace(module, x, mode) for mode in get_args(Mode)] if in_place else []
        for part in in_place:
            part.inplace = False  # type: ignore[assignment]  # it would overwrite what is measured
        passes = [trace(module, x, mode) for mode in get_args(Mode)]
    except Exception as error:
        problem = " ".join(str(error).split())
        given = f"{len(x)} x {list(x.shape[1:])}"
        raise UsageError(key, f"{type(error).__name__} in a forward of {given}: {problem}") from error
    for one in passes:
        shape = list(one.output.shape[1:]) if isinstance(one.output, Tensor) else None
        if shape != [outputs]:
            got = f"a {type(one.output).__name__}" if shape is None else f"[B, {', '.join(map(str, shape))}]"
            remedy = "Return the outputs of the head alone, one for each class or target."
            raise UsageError(
                key, f"its forward must return one tensor [B, {outputs}], and returns {got}", remedy=remedy
            )
    for a, b in zip(written, passes, strict=False):
        if (differing := first_difference(a, b)) is not None:
            problem = f"{differing} changes where no part works in place, as measuring needs it"
            raise UsageError(key, problem, remedy="Use inplace=False, and write forward for that.")
    training, evaluated = passes
    for call in evaluated.calls:
        if version_of(call.out) != call.version:
            problem = f"what {call.path} gives is changed in place, and could not be measured"
            raise UsageError(key, problem, remedy="Write x = x + y for x += y, and relu for relu_.")
    for call in evaluated.calls:
        if isinstance(call.part, (*AFFINE, *NORM)) and not training.of(call.path):
            raise UsageError(key, f"{call.path} is left out of a forward in training, and could not be measured")
    evaluated.fused |= training.fused
    evaluated.hidden_norms += training.hidden_norms
    return evaluated


def _is_norm(call: Call) -> bool:
    return isinstance(call.part, NORM)


def _followers(seen: Trace) -> Callable[[Call, Callable[[Call], bool]], Call | None]:
    """A function: the first call of a kind whose input is the very output of another call."""
    by_input: dict[int, list[Call]] = {}
    for call in seen.calls:
        by_input.setdefault(id(call.given), []).append(call)

    def after(call: Call, wanted: Callable[[Call], bool]) -> Call | None:
        return next((one for one in by_input.get(id(call.out), []) if wanted(one)), None)

    return after


def _found(seen: Trace, key: str) -> list[_Block]:
    """A block for each affine map that is trained."""
    after = _followers(seen)
    affine = [call for call in seen.calls if isinstance(call.part, AFFINE)]
    ends: dict[object, str] = {call.out.grad_fn: call.path for call in affine}
    before_others = {path for call in affine for path in sources(call.given, ends)}
    blocks = []
    for call in affine:
        if _frozen(call.part) or not call.has_channels:
            continue
        before = after(call, _is_norm)
        acting = after(before or call, lambda one: one.acts)
        behind = after(acting, _is_norm) if acting is not None and before is None else None
        last = acting or before or call
        passed_on = after(last, lambda one: isinstance(one.part, AFFINE)) is not None
        if acting is None and before is not None and before.path in seen.fused:
            problem = f"{before.path} is {_kind(before)}, and no nonlinearity is seen after it"
            remedy = f'Make the nonlinearity a part of its own, or use norm=own and name {before.path} with "" after it'
            raise UsageError(key, problem, remedy=f"{remedy}: {EXAMPLE}.")
        if acting is None and not passed_on and call.path in before_others:  # a head may have anything after it
            problem = (
                f"no nonlinearity is seen after {last.path}: what it gives goes into something else first, as a sum, a "
                "dropout or a pooling"
            )
            raise UsageError(key, problem, remedy=NAME_THEM)
        blocks.append(_Block(call.path.replace(".", "_"), call, before or behind, acting, norm_first=behind is None))
    if not blocks:
        problem = "has no nn.Linear that gives [B, C] and no nn.Conv2d that gives [B, C, H, W], and is trained"
        raise UsageError(key, problem, remedy=NAME_THEM)
    return blocks


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
        if affine is None or affine.acts or _is_norm(affine) or next(affine.part.parameters(), None) is None:
            raise UsageError(key, f"{name} has no affine map with a weight", block[0], there)
        after = [call for call in seen.of(block[2]) if order[id(call)] > order[id(affine)]] if block[2] else []
        follows = [call for call in after if call.given is (norm or affine).out]
        acting = next(iter(follows or after), None)
        if acting is not None and norm is not None and acting.path.startswith(f"{norm.path}."):
            problem = f"{acting.path} of {name} is inside of {norm.path}, and what it sees could not be measured"
            raise UsageError(key, problem, remedy='Write "" in its place: the site then ends with the norm.')
        norm_first = norm is None or acting is None or order[id(norm)] < order[id(acting)]
        found.append(_Block(name, affine, norm, acting, norm_first))
    ends: dict[object, str] = {call.out.grad_fn: call.path for call in seen.calls if isinstance(call.part, AFFINE)}
    ends |= {block.affine.out.grad_fn: block.affine.path for block in found}
    for one in found:
        for call in (one.norm, one.acting):
            if call is not None and one.affine.path not in (before := sources(call.given, ends)):
                got = f"that of {listed(sorted(before))}" if before else "none of an affine map"
                problem = f"{call.path} of {one.name} does not see the output of {one.affine.path}, but {got}"
                raise UsageError(key, problem, remedy="Pair the parts as forward does.")
    return sorted(found, key=lambda one: order[id(one.affine)])


def _kind(norm: Call) -> str:
    """What a norm with a forward of its own is, in words."""
    known = next(kind for kind in NORM if isinstance(norm.part, kind)).__name__
    return f"a {type(norm.part).__name__}, which computes something else than its nn.{known}"


def _frozen(part: nn.Module) -> bool:
    weight = dict(part.named_parameters(recurse=False)).get("weight")
    return weight is not None and not weight.requires_grad


def _refuse_unmeasurable(module: nn.Module, blocks: Sequence[_Block], seen: Trace, key: str) -> None:
    """Refuse parts whose measurements would be those of something else.

    Raises:
        UsageError: names the part.
    """
    owners: dict[Tensor, list[str]] = {}
    for path, part in module.named_modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            owners.setdefault(tensor, []).append(f"{path}.{name}")
    for names in owners.values():
        if len(names) > 1:
            problem = f"{listed(names)} are one tensor, and measurements are of each part"
            raise UsageError(key, problem, remedy="Give each part its own.")
    for block in blocks:
        path = block.affine.path
        for call in (block.affine, block.norm):
            if call is not None and len(seen.of(call.path)) > 1:
                remedy = "Give each place its own part."
                raise UsageError(key, f"{call.path} is used more than once in a forward", remedy=remedy)
        if "weight" not in dict(block.affine.part.named_parameters(recurse=False)):
            problem = f"the weight of {path} is no parameter: it is computed at every forward, as by weight_norm"
            raise UsageError(key, problem, remedy="Use an affine map with a weight of its own.")
        if _frozen(block.affine.part):
            raise UsageError(key, f"{path} is frozen (requires_grad=False), and cannot be a site")
        if not block.affine.has_channels:
            shape, remedy = list(block.affine.out.shape), "A site gives [B, C] or [B, C, H, W]."
            raise UsageError(key, f"{path} gives {len(shape)} dimensions", shape, remedy)


def _refuse_other_norms(blocks: Sequence[_Block], seen: Trace, named: bool, key: str) -> None:
    """Refuse norms that could not be exchanged, so that the net would not be what `norm` says.

    Raises:
        UsageError: names the part.
    """
    places = {block.norm.path: block.affine for block in blocks if block.norm is not None}
    for call in filter(_is_norm, seen.calls):
        if call.path not in places and named:
            remedy = "Name it there, or keep every norm with norm=own."
            raise UsageError(key, f"{call.path} is in no block of `sites`, and cannot be exchanged", remedy=remedy)
        if call.path not in places:
            raise UsageError(
                key, f"{call.path} follows no affine map", remedy=f"{NAME_THEM} norm=own keeps every norm."
            )
        if call.path in seen.fused:
            remedy = "Keep it with norm=own, or make it a norm of torch.nn and a part for the rest."
            raise UsageError(key, f"{call.path} is {_kind(call)}, and cannot be exchanged", remedy=remedy)
        last = (
            isinstance(call.part, nn.LayerNorm | nn.RMSNorm) and len(call.part.normalized_shape) < call.given.ndim - 1
        )
        if last or call.given.shape[1] != places[call.path].out.shape[1]:
            problem = f"{call.path} does not see the channels of {places[call.path].path} in dimension 1"
            raise UsageError(
                key, f"{problem}, and cannot be exchanged", list(call.given.shape), "Keep it with norm=own."
            )
    hidden = [path for path in seen.hidden_norms if path not in places]
    if hidden:
        problem = f"{hidden[0]} normalizes by code of its own, which cannot be exchanged"
        raise UsageError(key, problem, remedy="Keep it with norm=own, or make it a norm of torch.nn.")


def _exchanged(module: nn.Module, places: Sequence[Call], norm: NormSpec, key: str) -> list[str]:
    """Put the norm of the spec, or none, in place of each of the module's own. Returns what that changes."""
    if norm.name == "own":
        for name, default in (("layers", "all"), ("every", 1)):
            if (given := getattr(norm, name)) != default:
                raise UsageError(f"norm.{name}", "norm=own keeps every norm", given, "Leave it out.")
    if not places and norm.name != "none":
        remedy = "Put nn.BatchNorm2d or nn.BatchNorm1d where norms may stand, or use norm=none."
        raise UsageError("norm", f"{key} has no norm that could be exchanged", norm.name, remedy)
    if norm.name == "own":
        return []
    normed = normed_layers(norm, len(places)) if norm.name != "none" else frozenset()
    changes: dict[str, list[str]] = {}
    for index, place in enumerate(places):
        dims = place.given.ndim - 2
        layer = NORMS.build(norm.name, norm.options, place.given.shape[1], dims) if index in normed else None
        if change := _change(place.part, layer):
            changes.setdefault(change, []).append(place.path)
        for path, part in list(module.named_modules(remove_duplicate=False)):  # a part may have several paths
            if part is place.part:
                parent, _, attribute = path.rpartition(".")
                setattr(module.get_submodule(parent), attribute, layer or nn.Identity())
    return [
        f"norm={norm.name} replaces {listed(paths)} ({change}); norm=own keeps the module's"
        for change, paths in changes.items()
    ]


def _change(own: nn.Module, layer: nn.Module | None) -> str:
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


def _refuse_leftovers(module: nn.Module, places: Sequence[Call], x: Tensor, key: str) -> None:
    """Refuse a forward that still reaches an exchanged norm: in another way than by its path, as through a list."""
    reached: list[str] = []
    handles = [
        place.part.register_forward_pre_hook(lambda *_, path=place.path: reached.append(path)) for place in places
    ]
    outputs_now(module, x.detach(), "running")
    for handle in handles:
        handle.remove()
    if reached:
        problem = f"{reached[0]} cannot be exchanged: forward does not find it by its name"
        raise UsageError(key, problem, remedy="Call self.bn1(x), keep norms in an nn.ModuleList, or use norm=own.")


def _not_measured(module: nn.Module, blocks: Sequence[_Block]) -> list[str]:
    """Parts with parameters of their own that are trained and belong to no site."""
    measured = {
        id(param) for block in blocks for call in (block.affine, block.norm) if call for param in call.part.parameters()
    }
    paths = [
        f"{path} ({type(part).__name__})"
        for path, part in module.named_modules()
        if any(id(param) not in measured and param.requires_grad for param in part.parameters(recurse=False))
        and not isinstance(part, NORM)
    ]
    return [f"trained, but no site: {listed(paths)}"] if paths else []
