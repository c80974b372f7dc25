"""The cost of a run: seconds per step, parameters, and bytes that a step keeps for its backward pass."""

from __future__ import annotations

import math

from bnlab.analysis.metrics import METRICS
from bnlab.record.runs import Run


@METRICS.register("step_s", of="run", source="status.json", unit="s", better="lower", shown_with=None)
def step_s(run: Run) -> float:
    """Seconds per training step, without probes: batch, forward, backward and update, with the run's evaluations of the
    test split and its checkpoints. Of a run in a stack, its share of the stack's seconds, which is
    less than a step takes alone: compare at equal nets_at_once, or with launch.lockstep=off. Not measured for a run
    that diverged: it has little but a start."""
    timing = run.status.get("timing") or {}
    took: float = timing.get("run_s", math.nan) - timing.get("measure_s", math.nan)
    return math.nan if run.diverged else took / max(1, run.step)


@METRICS.register("nets_at_once", of="run", source="status.json", unit="nets", shown_with=None)
def nets_at_once(run: Run) -> float:
    """The largest number of nets that were trained in one stack with this one, itself included; 1 for a run alone.
    Not known for older runs."""
    nets = (run.status.get("timing") or {}).get("nets")
    return math.nan if nets is None else float(nets)


@METRICS.register("parameters", of="run", source="status.json", unit="numbers", better="lower")
def parameters(run: Run) -> float:
    """Trained parameters, those of norms included. Not known for older runs."""
    count = run.status.get("parameters")
    return math.nan if count is None else float(count)


@METRICS.register("saved_bytes", of="run", source="probe memory", unit="bytes", better="lower", reads=("saved_bytes",))
def saved_bytes(run: Run) -> float:
    """Bytes that a training step keeps for its backward pass, at the first measured step; not the peak memory of the
    process, which depends on the machine. Measured by probes=memory."""
    values = run.series("saved_bytes").values
    return float(values[0]) if len(values) else math.nan
