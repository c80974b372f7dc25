"""Exact resume: everything a run depends on at the start of a step, in one file.

bnlab's own random choices are functions of the seed and the step (seeds.py) and need no state here; torch's global
generator, from which a plugin's module may draw, is saved.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnlab.core.errors import UsageError
from bnlab.record.folder import write_atomically
from bnlab.run.observe import Observer


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a run: the next `step`, the loss of the first step, the length of the journal so far, and the
    seconds spent, in all and on measuring."""

    step: int = 0
    initial_loss: float | None = None
    journal_bytes: int = 0
    run_s: float = 0.0
    measure_s: float = 0.0


def save(
    path: Path, progress: Progress, module: nn.Module, optimizer: torch.optim.Optimizer, observer: Observer
) -> None:
    """Write the checkpoint; the previous one stays until this one is complete."""
    buffer = io.BytesIO()
    content: dict[str, Any] = {
        "progress": asdict(progress),
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "carries": {
            probe: {name: torch.from_numpy(x) for name, x in carry.items()} for probe, carry in observer.carries.items()
        },
    }
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, observer: Observer) -> Progress:
    """Restore everything from the checkpoint; a new `Progress` if there is none."""
    if not path.exists():
        return Progress()
    device = next(module.parameters()).device
    content = torch.load(path, map_location=device, weights_only=True)
    module.load_state_dict(content["module"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"].cpu())
    observer.carries = {
        probe: {name: x.cpu().numpy() for name, x in carry.items()} for probe, carry in content["carries"].items()
    }
    return Progress(**content["progress"])


def restore_weights(path: Path, module: nn.Module) -> int:
    """Restore weights and buffers alone, into a net that is not trained further; returns the step of the checkpoint.

    Raises:
        UsageError: the file cannot be read, or belongs to another net.
    """
    device = next(module.parameters()).device
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(content["module"])
        return int(content["progress"]["step"])
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(str(path), f"cannot be read into this net: {problem[:200]}") from None
