"""A user's own `nn.Module` as a net: its blocks affine -> [norm] -> activation are found, its norms exchanged.

What is connected with what is seen in one forward pass: a module that is given the very tensor that another one gave
follows it. A sum, a `F.relu`, a reshape between two modules make another tensor, and the trail ends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """The net of that name: bnlab's own models build it themselves; of a registered `nn.Module`, called with
    (input_shape, outputs) and its options, it is what `adopted` makes.

    Raises:
        UsageError: what the model cannot be.
    """
    constructor = MODELS.entry(model.name).constructor
    if not (isinstance(constructor, type) and issubclass(constructor, nn.Module)):
        net: Net = MODELS.build(model.name, model.options, input_shape, outputs, model, norm, seed)
        return net
    with torch.random.fork_rng(devices=[]):  # for what it draws itself; affine weights are drawn again below
        torch.manual_seed(stream(seed, "init", model.name).initial_seed())
        module = MODELS.build(model.name, model.options, input_shape, outputs)
    return adopted(module, model, norm, input_shape, seed)


@dataclass(frozen=True, slots=True)
class _Call:
    """What a part without parts of its own was given, and what it gave."""

    path: str
    part: nn.Module
    given: Tensor
    out: Tensor
    version: int


def adopted(module: nn.Module, model: ModelSpec, norm: NormSpec, input_shape: tuple[int, ...], seed: int) -> Net:
    """The user's module as a net. Its own norms are places: there stands the norm of the spec, or none. Affine weights
    start from the `init` stream.

    The blocks are those of its attribute `sites`, {name: (affine, norm, activation)} by the paths of its parts, or else
    they are found.

    Raises:
        UsageError: a block that cannot be told, a part that is used twice, norms that cannot be exchanged.
    """
    key = f"model={model.name}"
    if norm.position != "before":
        raise UsageError("norm.position", f"{key} says itself where its norms stand", norm.position, "Leave it out.")
    calls, output = _calls(module, input_shape, key)
    named = getattr(module, "sites", None)
    blocks = _named(named, calls, key) if named is not None else _found(calls, output, key)
    digits = max(2, len(str(len(blocks) - 1)))
    sites = [replace(site, name=f"L{i:0{digits}d}_{site.name}") for i, site in enumerate(blocks)]
    sites = _with_norms(module, sites, calls, norm, key)
    return finished(module, sites, model, seed)


def _calls(module: nn.Module, input_shape: tuple[int, ...], key: str) -> tuple[dict[str, _Call], object]:
    """By its path, what passed through every part in one forward pass, in the order of computation; and the outputs."""
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
            remedy = "Write x = x + y for x += y, and relu for relu_."
            raise UsageError(
                key, f"what {call.path} gives is changed in place, and could not be measured", remedy=remedy
            )
    return calls, output


def _acts(part: nn.Module) -> bool:
    return type(part).__module__ == "torch.nn.modules.activation"


def _found(calls: Mapping[str, _Call], output: object, key: str) -> list[Site]:
    """A block for each affine map."""
    followers: dict[int, list[_Call]] = {}
    for call in calls.values():
        followers.setdefault(id(call.given), []).append(call)

    def after(call: _Call, norm: bool) -> _Call | None:
        next_ones = followers.get(id(call.out), [])
        return next((c for c in next_ones if (isinstance(c.part, NORM) if norm else _acts(c.part))), None)

    sites = []
    for call in (call for call in calls.values() if isinstance(call.part, AFFINE)):
        normed = after(call, norm=True)
        acting = after(normed or call, norm=False)
        norm_first = normed is not None or acting is None
        if acting is not None and normed is None and (normed := after(acting, norm=True)) is None:
            norm_first = True
        last = acting or normed or call
        passed_on = any(isinstance(one.part, AFFINE) for one in followers.get(id(last.out), []))
        if acting is None and last.out is not output and not passed_on:
            raise UsageError(
                key,
                f"no nonlinearity is seen after {last.path}: what it gives goes into something that is not a part, as "
                "a sum or F.relu, or is pooled first",
                remedy=f"Use nn.ReLU() and the like, or name the blocks in the class: {EXAMPLE}.",
            )
        sites.append(_site(call.path.replace(".", "_"), call, normed, acting, norm_first=norm_first))
    if not sites:
        raise UsageError(key, "has no nn.Linear and no nn.Conv2d", remedy=f"Name its blocks in the class: {EXAMPLE}.")
    places = [site.norm for site in sites]
    for call in calls.values():
        if isinstance(call.part, NORM) and call.part not in places:
            raise UsageError(
                key, f"{call.path} follows no affine map", remedy=f"Name the blocks in the class: {EXAMPLE}."
            )
    return sites


def _named(named: object, calls: Mapping[str, _Call], key: str) -> list[Site]:
    """The blocks as the user names them."""
    if not isinstance(named, Mapping) or not all(
        isinstance(block, tuple) and len(block) == 3 for block in named.values()
    ):
        raise UsageError(key, "its `sites` is not {name: (affine, norm, activation)}", remedy=f"Write {EXAMPLE}.")
    sites = []
    for name, block in named.items():
        for path in block:
            if path and path not in calls:
                raise UsageError(
                    f"{key} sites", f"no part of {name} that a forward passes through", path, _paths(calls)
                )
        affine, norm, activation = (calls[path] if path else None for path in block)
        if affine is None or "weight" not in dict(affine.part.named_parameters()):
            raise UsageError(f"{key} sites", f"{name} has no affine map with a weight", block[0], _paths(calls))
        order = list(calls)
        norm_first = norm is None or activation is None or order.index(block[1]) < order.index(block[2])
        sites.append(_site(name, affine, norm, activation, norm_first=norm_first))
    return sites


def _paths(calls: Mapping[str, _Call]) -> str:
    return f"There are: {', '.join(calls)}."


def _site(name: str, affine: _Call, norm: _Call | None, acting: _Call | None, *, norm_first: bool) -> Site:
    before = norm if norm is not None and norm_first else affine
    return Site(
        name=name,
        affine=affine.part,
        norm=None if norm is None else norm.part,
        activation=nn.Identity() if acting is None else acting.part,
        norm_first=norm_first,
        params=(),
        residual_sum=acting is not None and acting.given is not before.out,
    )


def _with_norms(
    module: nn.Module, sites: Sequence[Site], calls: Mapping[str, _Call], norm: NormSpec, key: str
) -> list[Site]:
    """The sites with the norm of the spec, or none, in place of the module's own."""
    by_part = {call.part: call for call in calls.values()}
    places = [site for site in sites if site.norm is not None]
    if not places and norm.name != "none":
        remedy = "Put nn.BatchNorm2d or nn.BatchNorm1d where norms may stand, or use norm=none."
        raise UsageError("norm", f"{key} has no norm that could be exchanged", norm.name, remedy)
    normed = normed_layers(norm, len(places)) if norm.name != "none" else frozenset()
    exchanged = {}
    for index, site in enumerate(places):
        assert site.norm is not None
        call = by_part[site.norm]
        if call.given.ndim not in (2, 4):
            raise UsageError(key, f"{call.path} sees {call.given.ndim} dimensions", remedy="Norms take 2 or 4.")
        layer = None
        if index in normed:
            layer = NORMS.build(norm.name, norm.options, call.given.shape[1], call.given.ndim - 2)
        parent, _, attribute = call.path.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer or nn.Identity())
        exchanged[site.name] = layer
    return [replace(site, norm=exchanged.get(site.name)) for site in sites]
