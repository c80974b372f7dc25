"""Training from a script or a notebook."""

from __future__ import annotations

from pathlib import Path

from bnlab.record.folder import ENDED, RunFolder
from bnlab.record.runs import Run, read_run, state_to_resume


def train(config: str, *overrides: str, runs: Path | str = "runs", config_dir: Path | str | None = None) -> Run:
    """Train one run, or resume it, as `bnlab train --config CONFIG OVERRIDES` does, without a display.

    >>> run = bnlab.train("deep_mlp", "norm=none", "steps=100")  # doctest: +SKIP
    >>> run.final("test_accuracy"), run.series("train_loss").values[-1]  # doctest: +SKIP

    Raises:
        UsageError: an unknown config or key, a wrong value, a run that another process trains.
        RunFailedError: an error inside the run.
    """
    from bnlab.config import load as load_spec
    from bnlab.run import host
    from bnlab.run.setup import assemble
    from bnlab.run.train import train as train_run

    spec = load_spec(config, overrides, None if config_dir is None else Path(config_dir))
    folder = RunFolder(Path(runs) / spec.folder)
    if state_to_resume(folder)[0] not in ENDED:
        host.prepare(spec.threads)
        train_run(assemble(spec), folder)
    return read_run(folder)
