"""The norm of a run in place of each norm of a user's own module, or a refusal that names the part."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.seeds import stream
from bnlab.core.spec import NormSpec
from bnlab.core.state import outputs_now
from bnlab.core.text import listed
from bnlab.net.build import change_of, normed_layers
from bnlab.net.trace import Call, Trace, same
from bnlab.net.wrap import Copied


def refuse_other_norms(places: Sequence[Call], seen: Trace, norm: NormSpec, key: str) -> None:
    """Refuse norms that could not be exchanged, so that the net would not be what `norm` says.

    Raises:
        UsageError: names the part.
    """
    for call in places:
        if call.path in seen.fused:
            remedy = "Keep it with norm=own, or make it a norm of torch.nn and a part for the rest."
            raise UsageError(key, f"{call.path} is {call.kind}, and cannot be exchanged", remedy=remedy)
        given = list(call.given.shape)
        last = isinstance(call.part, nn.LayerNorm | nn.RMSNorm) and len(call.part.normalized_shape) < len(given) - 1
        if norm.name != "none" and (last or len(given) not in (2, 3, 4)):
            problem = f"{call.path} does not see [B, C], [B, C, T] or [B, C, H, W], and can only be left out or kept"
            raise UsageError(key, problem, given, "Use norm=none or norm=own.")
    if seen.in_training:
        problem = f"{seen.in_training[0]} is left out of a forward in evaluation, and cannot be exchanged"
        raise UsageError(key, problem, remedy="Keep it with norm=own.")
    hidden = [path for path in seen.hidden_norms if path not in {call.path for call in places}]
    if hidden:
        problem = f"{hidden[0]} normalizes by code of its own, which cannot be exchanged"
        raise UsageError(key, problem, remedy="Keep it with norm=own, or make it a norm of torch.nn.")


def exchanged(module: nn.Module, places: Sequence[Call], norm: NormSpec, seen: Trace, key: str) -> list[str]:
    """Put the norm of the spec, or none, in place of each of the module's own. Returns what that changes."""
    if norm.name == "own":
        for name, default in (("layers", "all"), ("every", 1)):
            if (given := getattr(norm, name)) != default:
                raise UsageError(f"norm.{name}", "norm=own keeps every norm", given, "Leave it out.")
    if not places and norm.name not in ("none", "own"):
        remedy = "Put nn.BatchNorm2d or nn.BatchNorm1d where norms may stand, or use norm=none."
        raise UsageError("norm", f"{key} has no norm that could be exchanged", norm.name, remedy)
    if norm.name == "own":
        return []
    normed = normed_layers(norm, len(places)) if norm.name != "none" else frozenset()
    changes: dict[str, list[str]] = {}
    dtype = next(module.parameters()).dtype
    for index, place in enumerate(places):
        C, dims = place.given.shape[1], len(place.given.shape) - 2
        layer = _layer(norm, C, dims).to(dtype) if index in normed else None
        if change := change_of(place.part, layer):
            changes.setdefault(change, []).append(place.path)
        for path, part in list(module.named_modules(remove_duplicate=False)):  # a part may have several paths
            if part is place.part:
                parent, _, attribute = path.rpartition(".")
                setattr(module.get_submodule(parent), attribute, layer or (Copied() if seen.changes else nn.Identity()))
    return [
        f"norm={norm.name} replaces {listed(paths)} ({change}); norm=own keeps the module's"
        for change, paths in changes.items()
    ]


def _layer(norm: NormSpec, channels: int, dims: int) -> nn.Module:
    """The norm for a place. What is not known to follow a 1-d convolution must compute there what it computes of an
    image one pixel high.

    Raises:
        UsageError: it does not.
    """
    layer: nn.Module = NORMS.build(norm.name, norm.options, channels, dims)
    if dims != 1:
        return layer
    x = torch.randn(4, channels, 8, generator=stream(0, "probe", "adopted"))
    try:
        of_line = copy.deepcopy(layer)(x)
        fits = same(of_line, NORMS.build(norm.name, norm.options, channels, 2)(x[:, :, None])[:, :, 0])
    except Exception:
        fits = False
    if not fits:
        problem = f"norm={norm.name} does not follow a 1-d convolution: with dims=1 it does not normalize [B, C, T]"
        raise UsageError("norm", problem, remedy="Use x of every shape in it, or nn.Conv2d with a height of 1.")
    return layer


def refuse_leftovers(module: nn.Module, places: Sequence[Call], x: Tensor, key: str) -> None:
    """Refuse a forward that still reaches an exchanged norm: in another way than by its path, as through a list."""
    reached: list[str] = []
    handles = [
        place.part.register_forward_pre_hook(lambda *_, path=place.path: reached.append(path)) for place in places
    ]
    try:
        outputs_now(module, x.detach(), "running")
    except Exception as error:
        problem = f"{type(error).__name__} in a forward without its norms: {' '.join(str(error).split())}"
        raise UsageError(key, problem, remedy="Keep its norms with norm=own.") from error
    for handle in handles:
        handle.remove()
    if reached:
        problem = f"{reached[0]} cannot be exchanged: forward does not find it by its name"
        raise UsageError(key, problem, remedy="Call self.bn1(x), keep norms in an nn.ModuleList, or use norm=own.")
