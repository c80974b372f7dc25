"""A copy of a user's net in which passes are made for measuring, so that the net itself is only ever looked at.

The copy has its own weights, buffers, gradients and modes. They are set to those of the net at three moments of a
measured step: before its forward pass (buffers, modes, attributes), before the update (weights, gradients), and after
it (weights, buffers). Where no pass will be made in the copy, only weights and gradients are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnlab.core.errors import UsageError, cause
from bnlab.core.state import copy_each
from bnlab.net.adopt import as_it_is
from bnlab.net.build import Net
from bnlab.net.wrap import version_of
from bnlab.verify.checks import HOOKS

Call = Callable[[nn.Module, Tensor], Any]
"""How a batch goes through a module, where that is not `module(x)`."""
KEY = "model"
OWN_PARTS = "Let copy.deepcopy make parts of its own for it: no function of another part kept, no __deepcopy__."
PLAIN = frozenset((bool, int, float, str))
"""Types of attributes that are taken over as they are."""
NOT_TAKEN = frozenset(vars(nn.Module())) - {"training"} | {"inplace"}
"""Names of attributes in which every module has its parts, and that of `Twin.nothing_in_place`."""
EXAMPLES = 4
"""In the passes that show how the parts are connected."""


class Called(nn.Module):
    """A module that takes one batch and returns one tensor, as `call` makes it of another module."""

    def __init__(self, net: nn.Module, call: Call) -> None:
        super().__init__()
        self.net, self._call = net, call

    def forward(self, x: Tensor) -> Any:
        return self._call(self.net, x)


def unwrapped(module: nn.Module) -> tuple[nn.Module, bool]:
    """The module inside of torch.compile and DistributedDataParallel, and whether it is compiled.

    Raises:
        UsageError: it is wrapped, or compiled, in a way in which it cannot be measured.
    """
    compiled = False
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # of torch.compile
            module, compiled = inner, True
        else:
            break
    for path, part in module.named_modules():
        name = path or "it"
        if isinstance(part, nn.DataParallel):
            raise UsageError(
                KEY, f"{name} is an nn.DataParallel, whose copies are not seen", remedy="Watch one device."
            )
        if type(part).__name__ in ("FullyShardedDataParallel", "FSDPModule"):
            raise UsageError(KEY, f"{name} has its weights in shards, and could not be measured")
        if isinstance(part, torch.jit.ScriptModule):  # which takes no hooks
            raise UsageError(KEY, f"{name} is compiled by torch.jit", remedy="Watch it as it was before that.")
        inside = path and isinstance(getattr(part, "_orig_mod", None), nn.Module)
        if inside or getattr(part, "_compiled_call_impl", None) is not None:
            remedy = "Write model = torch.compile(model), and watch that."
            raise UsageError(KEY, f"{name} is compiled in its place, and cannot be looked into", remedy=remedy)
    tensors = (*module.parameters(), *module.buffers())
    if any(map(is_lazy, tensors)):
        raise UsageError(KEY, "has weights that no forward has drawn yet", remedy="Pass one batch through it first.")
    if not any(param.requires_grad for param in module.parameters()):
        raise UsageError(KEY, "has no parameter that is trained")
    return module, compiled


class Twin:
    """`net` is the copy. `watched` is the user's net with the same sites; None where it is compiled, so that what a
    training pass computes at the sites is computed once more in the copy."""

    def __init__(self, model: nn.Module, x: Tensor, sites: Mapping[str, Any] | None, call: Call | None) -> None:
        """`x` [B, ...]: a batch that the model takes.

        Raises:
            UsageError: the model cannot be copied or measured.
        """
        self.module, compiled = unwrapped(model)
        try:
            self._copy = copy.deepcopy(self.module)
        except Exception as error:
            raise UsageError(KEY, f"cannot be copied, and so not be measured: {cause(error)}") from error
        if _parts(self.module) & _parts(self._copy):
            raise UsageError(KEY, "its copy shares parts with it, and so it cannot be measured", remedy=OWN_PARTS)
        self._pairs = list(zip(self.module.modules(), self._copy.modules(), strict=True))
        self._in_place = [part for part in self.module.modules() if getattr(part, "inplace", False)]
        for part in self._copy.modules():
            _forget_hooks(part)
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            whole = (self._copy if call is None else Called(self._copy, call)).train()
            with _uncalled(self.module):
                self.net = as_it_is(whole, x[:EXAMPLES], KEY, _inside(sites, "" if call is None else "net."))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        self.watched = None if compiled else _of(self.net, {mine: own for own, mine in self._pairs})
        self._params, self._buffers = list(self._copy.parameters()), list(self._copy.buffers())
        for param in self._params:
            param.grad = torch.zeros_like(param) if param.requires_grad else None

    def before_forward(self, *, passes: bool) -> None:
        """Take over modes, plain attributes and buffers, if there will be `passes` in the copy."""
        self.given = list(self.module.parameters())  # listed once a step: a walk through a module's parts is slow
        self._passes = passes
        for part, mine in self._pairs if passes else ():
            own, its = vars(mine), vars(part)
            for name in its.keys() - NOT_TAKEN:
                value = its[name]
                if type(value) in PLAIN:
                    own[name] = value
                elif isinstance(value, Tensor):
                    own[name] = value.detach().clone()
        self._take_buffers()

    @torch.no_grad()
    def before_update(self, divisor: Tensor | float | None) -> None:
        """Take over weights, and gradients as the optimizer has them, over `divisor`."""
        copy_each(self._params, self.given)
        pairs = [(mine.grad, param.grad) for mine, param in zip(self._params, self.given, strict=True)]
        known = [(mine, grad) for mine, grad in pairs if mine is not None and grad is not None]
        copy_each([mine for mine, _ in known], [grad.to_dense() if grad.is_sparse else grad for _, grad in known])
        for mine, grad in pairs if divisor is not None or len(known) < len(pairs) else ():
            if mine is not None and grad is None:
                mine.zero_()
            elif mine is not None and divisor is not None:
                mine.div_(divisor)

    @torch.no_grad()
    def after_update(self) -> None:
        """Take over weights and buffers."""
        copy_each(self._params, self.given)
        self._take_buffers()

    @contextmanager
    def nothing_in_place(self) -> Iterator[None]:
        """Inside the `with`, no part of the user's net works in place, which would overwrite what is measured."""
        self._set_in_place(False)
        try:
            yield
        finally:
            self._set_in_place(True)

    def _set_in_place(self, value: bool) -> None:
        for part in self._in_place:
            part.inplace = value  # type: ignore[assignment]

    @torch.no_grad()
    def _take_buffers(self) -> None:
        if self._passes:
            given = list(self.module.buffers())
            if len(given) != len(self._buffers):
                raise UsageError(KEY, "has more or fewer buffers than at its first step", len(given))
            copy_each(self._buffers, given)


class Hook:
    """A hook on a user's module. A copy of the module, or a file of it, has in its place one that does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        return self._call(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None, and loads where there is no bnlab


def versions(params: Iterable[nn.Parameter]) -> list[int]:
    """By parameter, how often it was changed in place."""
    return [version_of(param) for param in params]


def _parts(module: nn.Module) -> set[object]:
    """The parts of a module and their tensors, by identity."""
    return {*module.modules(), *module.parameters(), *module.buffers()}


@contextmanager
def _uncalled(module: nn.Module) -> Iterator[None]:
    """Inside the `with`, a call of a part of the module is refused: a function kept in its copy still calls it."""

    def refuse(part: nn.Module, args: object) -> None:
        raise UsageError(KEY, "its copy calls parts of the model, and so it cannot be measured", remedy=OWN_PARTS)

    handles = [part.register_forward_pre_hook(refuse) for part in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of(net: Net, parts: Mapping[nn.Module, nn.Module]) -> Net:
    """The net with the same sites in another module: `parts` has the part there for each part here."""
    sites = [
        replace(
            site,
            affine=parts[site.affine],
            norm=None if site.norm is None else parts[site.norm],
            activation=parts.get(site.activation, site.activation),
        )
        for site in net.sites
    ]
    return replace(net, module=next(iter(parts.values())), sites=tuple(sites))


def _inside(sites: Mapping[str, Any] | None, prefix: str) -> object:
    """The user's names of blocks, for a module that has the user's as a part."""
    if not prefix or not isinstance(sites, Mapping):
        return sites
    return {
        name: tuple(f"{prefix}{path}" if path else path for path in block) if isinstance(block, tuple) else block
        for name, block in sites.items()
    }


def _forget_hooks(part: nn.Module) -> None:
    """Remove the user's hooks from a part of the copy. Those of torch stay: weight_norm and prune compute by them."""
    for name in HOOKS:
        hooks = getattr(part, name)
        for key in [key for key, hook in hooks.items() if not _is_of_torch(hook)]:
            del hooks[key]


def _is_of_torch(hook: object) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")
