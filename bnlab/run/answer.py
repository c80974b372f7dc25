"""Answers of a trained net: loss and accuracy on the test split, under conditions that training does not depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bnlab.core.conditions import settings
from bnlab.core.spec import RunSpec, canonical
from bnlab.core.text import leaves
from bnlab.data.base import Dataset
from bnlab.net.evaluate import evaluate
from bnlab.probes.base import to_host
from bnlab.record.folder import RunFolder
from bnlab.run import checkpoint, host
from bnlab.run.setup import Setup, asked, assemble

Caches = dict[str, dict[str, Dataset]]
"""A data set for each shift, which runs of one process share."""


def setups(specs: Sequence[RunSpec], caches: Caches) -> Iterator[tuple[Setup, bool]]:
    """The parts of a run under each of the specs, and whether its net is a new one, at its initial weights: there is
    one net a device.

    Raises:
        UsageError: a spec that cannot be evaluated.
    """
    setup, device = None, ""
    for spec in specs:
        shared = caches.setdefault(canonical([spec.data.shift, spec.data.shift_strength]), {})
        new = setup is None or spec.device != device
        setup = assemble(spec, shared) if setup is None or new else asked(setup, spec, shared)
        device = spec.device
        yield setup, new


def answers(folder: RunFolder, specs: Sequence[RunSpec], caches: Caches | None = None) -> Iterator[dict[str, Any]]:
    """What the net in a run's checkpoint answers under each of the specs: the settings, the `step` of the checkpoint,
    the number of test `examples`, and `test_loss` and `test_accuracy` in `metrics`.

    Raises:
        UsageError: a spec that cannot be evaluated, or a checkpoint of another net.
    """
    step = 0
    host.prepare(specs[0].threads)
    for setup, new in setups(specs, {} if caches is None else caches):
        if new:
            step = checkpoint.restore_weights(folder, setup.net.module, setup.steps)
        spec, test = setup.spec, setup.dataset.test
        found: dict[str, Any] = to_host(evaluate(setup.inference, test, spec.loss, spec.reduction))
        yield {
            **settings(dict(leaves(spec.tree())), {}),
            "step": step,
            "examples": len(test),
            "metrics": {f"test_{name}": float(value) for name, value in found.items()},
        }
