"""The updates of K nets in one, for torch's SGD, Adam and AdamW: every net's weights and optimizer state are those of
its own optimizer alone, bit for bit.

Each net keeps its own optimizer object. Its settings (learning rate, momentum, decay) are read from there at every
update; its state is a part of stacked tensors, so that a checkpoint of the net alone finds it. What is a number of a
net is a column [K, 1, ...] here: a fused multiply-add with a column rounds as torch's own with a number does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Settings = dict[str, Any]
Columns = Mapping[str, Tensor]


class Together(ABC):
    """The optimizers of the nets in the places of a stack, of one kind and with the same structure of settings."""

    states: ClassVar[tuple[str, ...]]
    """Names of the optimizer's state of a parameter, each of the parameter's shape."""

    def __init__(
        self, params: Mapping[str, Tensor], like: torch.optim.Optimizer, empty_like: Callable[[Tensor], Tensor]
    ) -> None:
        """`params`: stacked; `like`: an optimizer of the kind; `empty_like`: a new tensor in a parameter's layout."""
        self.params, self.settings = params, like.param_groups[0]
        used = self.states if self.has_state(self.settings) else ()
        self.state = {kept: {name: empty_like(p) for name, p in params.items()} for kept in used}
        self.places: list[torch.optim.Optimizer] = []
        self.steps: list[int] = []
        """By place: the updates that its net has had; of one that came with a state, at least 1."""
        self._counts = torch.zeros(len(next(iter(params.values()))))

    @staticmethod
    @abstractmethod
    def has_state(settings: Settings) -> bool: ...

    @staticmethod
    @abstractmethod
    def numbers(settings: Settings, step: int) -> dict[str, float]:
        """The numbers of a net's update, its first one with step = 1."""

    @abstractmethod
    def update(self, name: str, p: Tensor, g: Tensor, column: Columns, fresh: Sequence[int]) -> None:
        """Update one stacked parameter with its gradient, each [K, ...]; `fresh`: places of first updates."""

    def enter(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimizer into the next place, with its state."""
        place = len(self.places)
        self.places.append(optimizer)
        self.steps.append(0)
        own = optimizer.param_groups[0]["params"]
        if not self.state or own[0] not in optimizer.state:
            return
        self.steps[place] = int(optimizer.state[own[0]].get("step", 1))
        for name, param in zip(self.params, own, strict=True):
            for kept, stacked in self.state.items():
                stacked[name][place].copy_(optimizer.state[param][kept])
        self._show(place)

    def leave(self, place: int) -> None:
        """Give the optimizer in a place a state of its own. The last place's optimizer takes the place."""
        last = len(self.places) - 1
        for state in self.places[place].state.values():
            state.update({key: x.clone() for key, x in state.items() if isinstance(x, Tensor)})
        if place != last:
            self.places[place], self.steps[place] = self.places[last], self.steps[last]
            for stacked in self.state.values():
                for x in stacked.values():
                    x[place].copy_(x[last])
            if self.steps[place]:
                self._show(place)
        del self.places[last], self.steps[last]

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor]) -> None:
        """One update of all places, from gradients [K, ...]."""
        count = len(self.places)
        fresh = [place for place, steps in enumerate(self.steps) if not steps]
        self.steps = [steps + 1 for steps in self.steps]
        each = [self.numbers(own.param_groups[0], steps) for own, steps in zip(self.places, self.steps, strict=True)]
        for stacked in self.state.values():
            for x in stacked.values():
                for place in fresh:
                    x[place].zero_()
        columns: dict[int, Columns] = {}
        for name, p in self.params.items():
            if p.ndim not in columns:
                shape = (-1, *(1 for _ in p.shape[1:]))
                columns[p.ndim] = {
                    key: torch.tensor([numbers[key] for numbers in each], dtype=p.dtype, device=p.device).view(shape)
                    for key in each[0]
                }
            self.update(name, p[:count], grads[name], columns[p.ndim], fresh)
        for place in fresh if self.state else ():
            self._show(place)
        self._counts[:count] = torch.tensor(self.steps, dtype=self._counts.dtype)

    def rewind(self, steps: Sequence[int]) -> None:
        """Count so many updates again; the stacked state is already that of before."""
        self.steps = list(steps)
        for place, (optimizer, done) in enumerate(zip(self.places, steps, strict=True)):
            if done:
                self._show(place)
            else:
                optimizer.state.clear()

    def _show(self, place: int) -> None:
        """Let the optimizer in a place have the stack's state as its own."""
        optimizer = self.places[place]
        self._counts[place] = self.steps[place]
        if not self.state:
            return
        for name, param in zip(self.params, optimizer.param_groups[0]["params"], strict=True):
            shown = {kept: stacked[name][place] for kept, stacked in self.state.items()}
            optimizer.state[param].update(shown | ({"step": self._counts[place]} if len(shown) > 1 else {}))


class _Sgd(Together):
    states = ("momentum_buffer",)

    @staticmethod
    def has_state(settings: Settings) -> bool:
        return bool(settings["momentum"])

    @staticmethod
    def numbers(settings: Settings, step: int) -> dict[str, float]:
        return {"rate": -settings["lr"], "momentum": settings["momentum"], "decay": settings["weight_decay"]}

    def update(self, name: str, p: Tensor, g: Tensor, column: Columns, fresh: Sequence[int]) -> None:
        if self.settings["weight_decay"]:
            g = torch.addcmul(g, p, column["decay"])
        if self.settings["momentum"]:
            average = self.state["momentum_buffer"][name][: len(p)]
            average.mul_(column["momentum"]).add_(g)
            for place in fresh:
                average[place].copy_(g[place])
            g = torch.addcmul(g, average, column["momentum"]) if self.settings["nesterov"] else average
        p.addcmul_(g, column["rate"])


class _Adam(Together):
    states = ("exp_avg", "exp_avg_sq")
    decoupled: ClassVar[bool] = False

    @staticmethod
    def has_state(settings: Settings) -> bool:
        return True

    @staticmethod
    def numbers(settings: Settings, step: int) -> dict[str, float]:
        beta1, beta2 = settings["betas"]
        return {
            "rate": -(settings["lr"] / (1 - beta1**step)),
            "root": (1 - beta2**step) ** 0.5,
            "decay": settings["weight_decay"],
            "kept": 1 - settings["lr"] * settings["weight_decay"],
        }

    def update(self, name: str, p: Tensor, g: Tensor, column: Columns, fresh: Sequence[int]) -> None:
        beta1, beta2 = self.settings["betas"]
        if self.settings["weight_decay"] and self.decoupled:
            p.mul_(column["kept"])
        elif self.settings["weight_decay"]:
            g = torch.addcmul(g, p, column["decay"])
        average, square = (self.state[kept][name][: len(p)] for kept in self.states)
        average.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        below = (square.sqrt() / column["root"]).add_(self.settings["eps"])
        p.add_((column["rate"] * average).div_(below))


class _AdamW(_Adam):
    decoupled = True


_KINDS: dict[type[torch.optim.Optimizer], type[Together]] = {
    torch.optim.SGD: _Sgd,
    torch.optim.Adam: _Adam,
    torch.optim.AdamW: _AdamW,
}
_OFF = ("maximize", "dampening", "amsgrad", "capturable", "differentiable", "fused", "foreach")


def together(like: torch.optim.Optimizer) -> type[Together] | None:
    """The kind that updates several nets with such optimizers at once; None if there is none."""
    kind = _KINDS.get(type(like))
    if kind is None or len(like.param_groups) != 1 or any(like.param_groups[0].get(name) for name in _OFF):
        return None
    return kind
