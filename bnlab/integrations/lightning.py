"""A callback for Lightning: `Trainer(callbacks=[BNLabCallback(name="mine")])`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.core.text import listed
from bnlab.integrations._names import logged
from bnlab.loop.watch import Lab, watch


class BNLabCallback(pl.Callback):
    """Watches the training of a LightningModule, as `bnlab.watch` does a loop. Values that it logs in its validation,
    such as `val_loss`, are noted as those of held-out data, `test_loss`.

    Args:
        model: the path of the net in the LightningModule, such as "net"; without it, its only part with parameters, or
            itself, if its forward is the net.
        targets: what the targets are in a batch; without it, the second of a pair.
        options: of `bnlab.watch`; `name` is needed. `steps` is what the trainer expects.
    """

    def __init__(self, *, model: str = "", targets: Callable[[Any], Any] | None = None, **options: Any) -> None:
        self.lab: Lab | None = None
        """The watched run, from the start of the training on."""
        self._path, self._targets, self._options = model, targets or _second, options
        self._done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = self._options.get("steps", trainer.estimated_stepping_batches)
        if not math.isfinite(steps):
            raise UsageError("steps", "is not known to the trainer", steps, "Give steps= to the callback.")
        if len(trainer.optimizers) != 1:
            raise UsageError("optimizer", "exactly one can be watched", len(trainer.optimizers))
        net = _net(pl_module, self._path)
        self.lab = watch(net, trainer.optimizers[0], **{**self._options, "steps": int(steps)}).__enter__()
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.lab is None or trainer.global_step == self._done:  # a batch whose gradient is only accumulated
            return
        self._done = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.lab.step(loss, y=self._targets(batch))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lab is not None and not trainer.sanity_checking:
            self.lab.log(**logged(trainer.callback_metrics))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        if self.lab is not None:
            self.lab.__exit__(None if error is None else type(error), error, None)


def _second(batch: Any) -> Any:
    return batch[1] if isinstance(batch, list | tuple) and len(batch) == 2 else None


def _net(module: nn.Module, path: str) -> nn.Module:
    """Raises UsageError for a path that is no part."""
    parts = dict(module.named_modules())
    if path not in parts:
        names = listed([name for name, _ in module.named_children()])
        raise UsageError("model", "no such part of the LightningModule", path, f"There are: {names}.")
    trained = [part for part in module.children() if next(part.parameters(), None) is not None]
    loose = next(module.parameters(recurse=False), None) is not None
    return parts[path] if path or len(trained) != 1 or loose else trained[0]
