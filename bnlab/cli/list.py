"""The names that configs and records may use. Only the list of metrics imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.core.errors import UsageError, nearest
from bnlab.terminal.signs import print_json, say

KINDS = {
    "configs": "experiments",
    "experiments": "experiments",
    "studies": "studies",
    "norms": "norm",
    "models": "model",
    "data": "data",
    "optim": "optim",
    "probes": "probes",
    "metrics": "",
    "figures": "",
}
"""What `bnlab list` takes, and the folder of configs it stands for. Metrics are what a journal has; figures are what is
made of it, of a run or of a curve, and what claims are about."""

LOOP_METRICS = {
    "train_loss": "loss of the training batch, before the update",
    "train_accuracy": "share of the training batch that is classified right, before the update",
    "test_loss": "loss on the test set, with the statistics of eval_bn",
    "test_accuracy": "share of the test set that is classified right, with the statistics of eval_bn",
    "lr": "learning rate of the step",
}
"""What the loop itself records."""


def show_names(kind: str, config_dir: Path | None, as_json: bool) -> None:
    """Print everything of one kind.

    Raises:
        UsageError: an unknown kind.
    """
    from bnlab.terminal import tables

    found = names(kind, config_dir)
    if as_json:
        print_json({kind: found})
    elif found:
        tables.show_names(found)
    else:
        say(f"no {kind}")


def show_spec(tree: Mapping[str, Any], run_id: str, dirs: Sequence[Path], as_json: bool) -> None:
    """Print a resolved spec, with its id and the directories its configs may come from."""
    if as_json:
        print_json({"id": run_id, "config_dirs": [str(folder) for folder in dirs], "spec": tree})
        return
    say(f"# id: {run_id}")
    say(f"# configs: {', '.join(str(folder) for folder in dirs)}")
    say(yaml.safe_dump(dict(tree), sort_keys=False).rstrip())


def names(kind: str, config_dir: Path | None) -> list[dict[str, str]]:
    """Name and description of everything of one kind.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError("KIND", "nothing of this kind", kind, nearest(kind, KINDS))
    if kind == "metrics":
        return _metrics()
    if kind == "figures":
        from bnlab.analysis.metrics import table

        return table()
    from bnlab.config import available, config_dirs, description

    dirs = config_dirs(config_dir)
    found = [(name, description(file)) for name, file in available(KINDS[kind], dirs).items()]
    if kind == "probes":
        single = available("probes/one", dirs).items()
        found += [(name, f"{description(file)} Part of the above.") for name, file in single]
    return [{"name": name, "description": text} for name, text in found]


def _metrics() -> list[dict[str, str]]:
    from bnlab.core.registry import PROBES, load_plugins

    load_plugins([])
    found = [{"name": name, "description": text, "probe": ""} for name, text in LOOP_METRICS.items()]
    for probe in PROBES.names():
        metrics = PROBES.entry(probe).constructor.metrics  # type: ignore[attr-defined]
        found += [{"name": name, "description": text, "probe": probe} for name, text in metrics.items()]
    return found
