"""A callback for Hugging Face's Trainer: `Trainer(..., callbacks=[BNLabCallback(name="mine")])`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bnlab.integrations._names import logged
from bnlab.loop.twin import Hook
from bnlab.loop.watch import Lab, watch


class BNLabCallback(TrainerCallback):
    """Watches a training of the Trainer, as `bnlab.watch` does a loop. The model is called with its inputs by name, and
    returns its loss and its logits. What an evaluation gives, such as `eval_loss`, is noted as that of held-out data,
    `test_loss`.

    Args:
        inputs: the name of the batch among the model's inputs; without it, its `main_input_name`, or the first
            parameter of its forward.
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
        model: nn.Module = given["model"]
        first = next(iter(inspect.signature(model.forward).parameters))
        name = self._inputs or getattr(model, "main_input_name", first)
        options = {"call": lambda net, x: _logits(net(**{name: x})), **self._options}
        options = {"inputs": name, "steps": state.max_steps, "seed": args.seed, **options}
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
        for handle in self._handles:
            handle.remove()
        if self.lab is not None:
            self.lab.__exit__(None, None, None)

    def _see_targets(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if module.training:
            self._y = kwargs.get(self._targets)

    def _see_loss(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:
            loss = output.get("loss") if isinstance(output, Mapping) else output[0]
            self._loss = loss.detach() if isinstance(loss, Tensor) and loss.ndim == 0 else None


def _logits(output: Any) -> Any:
    """The outputs of the head, in what a model returns."""
    if isinstance(output, Mapping):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output
