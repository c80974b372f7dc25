"""The run folder of a loop: opened before its first step, written during it, and closed with its status."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from bnlab.core.errors import UsageError
from bnlab.record.folder import ENDED, HEARTBEAT_S, RunFolder
from bnlab.record.journal import Record
from bnlab.record.runs import is_divergence, state_of
from bnlab.run import host
from bnlab.run.observe import Observer, Recorder
from bnlab.run.train import clear


class Kept:
    """The folder of one run, this process's until `end`."""

    def __init__(
        self,
        folder: RunFolder,
        tree: Mapping[str, Any],
        facts: Mapping[str, Any],
        observer: Observer,
        *,
        fresh: bool,
    ) -> None:
        """`tree` is the spec, `facts` join its provenance. `fresh`: a run that has ended is replaced too.

        Raises:
            UsageError: it has ended, or another process writes it.
        """
        if state_of(folder)[0] in ENDED and not fresh:
            remedy = "Give fresh=True to replace it, or another name, arm or seed."
            raise UsageError(str(folder.path), "a run with these settings has ended", remedy=remedy)
        with ExitStack() as stack:
            self.folder = stack.enter_context(folder.owned())
            clear(self.folder)
            self.folder.write_spec(tree, host.provenance(tree["device"], tree["threads"]) | dict(facts))
            self.recorder = Recorder(self.folder, observer, self._listen, keep_bytes=0, profile="full")
            stack.callback(self.recorder.close)
            self._stack = stack.pop_all()
        self.metrics: dict[str, float] = {}
        """Final ones."""
        self._steps, self._parameters = tree["steps"], sum(param.numel() for param in observer.net.params.values())
        self._first_loss: float | None = None
        self._diverged: dict[str, Any] | None = None
        self._began = self._beaten = time.monotonic()
        self.folder.write_status({"status": "running", "step": 0, "steps": self._steps})

    @property
    def is_silent(self) -> bool:
        """Whether a heartbeat is due."""
        return time.monotonic() - self._beaten >= HEARTBEAT_S

    def beat(self) -> None:
        """Write the heartbeat."""
        self._beaten = time.monotonic()
        self.folder.heartbeat()

    def end(self, status: str, step: int, error: BaseException | None = None) -> None:
        """Write what is pending, and the status: `diverged` for `finished`, if the last loss was a divergence."""
        self.recorder.write()
        diverged = self._diverged if status == "finished" else None
        run_s = time.monotonic() - self._began
        ended: dict[str, Any] = {
            "status": "diverged" if diverged else status,
            "step": step,
            "steps": self._steps,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            **({"diverged": diverged} if diverged else {}),
            **({"error": f"{type(error).__name__}: {error}"} if error is not None else {}),
            "parameters": self._parameters,
            "timing": {
                "run_s": run_s,
                "measure_s": self.recorder.seconds,
                "steps_per_s": step / run_s if run_s else None,
            },
        }
        self.folder.log(ended.get("error") or f"{ended['status']}, {ended['metrics']}")
        self.folder.write_status(ended)

    def close(self) -> None:
        """Close its files: the run is no longer this process's."""
        self._stack.close()

    def _listen(self, record: Record) -> None:
        """A loss that is not finite, or far above the first one, is a divergence, from which a loop may recover."""
        if "train_loss" not in record:
            return
        loss = float(record["train_loss"])
        self._first_loss = loss if self._first_loss is None else self._first_loss
        finite = loss if math.isfinite(loss) else None
        bad = is_divergence(loss, self._first_loss)
        self._diverged = {"step": record["step"], "loss": finite, "site": None} if bad else None
