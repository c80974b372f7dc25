"""A callback for Hugging Face's Trainer: `Trainer(..., callbacks=[BNLabCallback(name="mine")])`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bnlab.integrations._names import logged
from bnlab.loop.twin import Hook
from bnlab.loop.watch import Lab, watch


class BNLabCallback(TrainerCallback):
    """Watches a training of the Trainer, as `bnlab.watch` does a loop. The model is called with its inputs by name, and
    returns its loss and its logits. What an evaluation gives, such as `eval_loss`, is noted as that of held-out data,
    `test_loss`. The Trainer does not tell its callbacks of an error: after one, call `close()`, or train again.

    Args:
        inputs: the name of the batch among the model's inputs; without it, its `main_input_name`, or the first
            parameter of its forward. A batch of token ids has its `attention_mask` with it, [B, 2, T]; a `probe_batch`
            may be the ids alone, [N, T], of which then all count.
        targets: the name of the targets among the model's inputs.
        options: of `bnlab.watch`; `name` is needed. `steps` is what the trainer expects.
    """

    def __init__(self, *, inputs: str = "", targets: str = "labels", **options: Any) -> None:
        self.lab: Lab | None = None
        """The watched run, from the start of the training on."""
        self._inputs, self._targets, self._options = inputs, targets, options
        self._y: Any = None
        self._loss: Any = None
        self._handles: list[Any] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.close(KeyboardInterrupt())
        model: nn.Module = given["model"]
        taken = inspect.signature(model.forward).parameters
        name = self._inputs or getattr(model, "main_input_name", next(iter(taken)))
        masked = name == "input_ids" and "attention_mask" in taken and "call" not in self._options
        defaults = {
            "inputs": _with_mask if masked else name,
            "call": _call_with_mask if masked else _call_with(name),
            "steps": state.max_steps,
            "seed": args.seed,
        }
        options = {**defaults, **self._options}
        self.lab = watch(model, given["optimizer"], **options).__enter__()
        self._handles = [
            model.register_forward_pre_hook(Hook(self._see_targets), with_kwargs=True),
            model.register_forward_hook(Hook(self._see_loss)),
        ]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self.lab is not None:
            self.lab.step(self._loss, y=self._y)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if self.lab is not None:
            self.lab.log(**logged(given.get("metrics") or {}))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Take everything off the model and end the run; `error` is what ended the training, if something did."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.lab is not None and self.lab.active:
            self.lab.__exit__(None if error is None else type(error), error, None)

    def _see_targets(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if module.training:
            self._y = kwargs.get(self._targets)

    def _see_loss(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:
            loss = output.get("loss") if isinstance(output, Mapping) else output[0]
            self._loss = loss.detach() if isinstance(loss, Tensor) and loss.ndim == 0 else None


def _with_mask(*, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
    """[B, T] and [B, T] -> [B, 2, T]."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
    return torch.stack([input_ids, mask], dim=1)


def _call_with_mask(net: nn.Module, x: Tensor) -> Any:
    ids, mask = (x, torch.ones_like(x)) if x.ndim == 2 else x.unbind(dim=1)
    return _logits(net(input_ids=ids, attention_mask=mask))


def _call_with(name: str) -> Callable[[nn.Module, Tensor], Any]:
    return lambda net, x: _logits(net(**{name: x}))


def _logits(output: Any) -> Any:
    """The outputs of the head, in what a model returns."""
    if isinstance(output, Mapping):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output
