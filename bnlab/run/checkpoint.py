"""Exact resume: everything a run depends on at the start of a step, in one file.

bnlab's own random choices are functions of the seed and the step (seeds.py) and need no state here; torch's global
generator, from which a plugin's module may draw, is saved.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.record.folder import BrokenError, write_atomically
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
    path: Path,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    observer: Observer,
    random: Tensor | None = None,
) -> None:
    """Write the checkpoint; the previous one stays until this one is complete. `random`: the state of torch's global
    generator, if it is not the present one."""
    buffer = io.BytesIO()
    content: dict[str, Any] = {
        "progress": asdict(progress),
        "module": _whole(module.state_dict()),
        "optimizer": _whole(optimizer.state_dict()),
        "random": torch.get_rng_state() if random is None else random,
        "carries": {
            probe: {name: torch.from_numpy(x) for name, x in carry.items()} for probe, carry in observer.carries.items()
        },
    }
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def _whole(value: Any) -> Any:
    """The same with copies of tensors that are parts of larger ones, which would be saved with them."""
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, Mapping):
        return type(value)((key, _whole(item)) for key, item in value.items())  # type: ignore[call-arg]
    return [_whole(item) for item in value] if isinstance(value, list) else value


def restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, observer: Observer) -> Progress:
    """Restore everything from the checkpoint; a new `Progress` if there is none.

    Raises:
        BrokenError: the file cannot be read, or belongs to another net.
    """
    if not path.exists():
        return Progress()
    with _read(path, module) as content:
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"].cpu())
        observer.carries = {
            probe: {name: x.cpu().numpy() for name, x in carry.items()} for probe, carry in content["carries"].items()
        }
        return Progress(**content["progress"])


def restore_weights(path: Path, module: nn.Module) -> int:
    """Restore weights and buffers alone, into a net that is not trained further; returns the step of the checkpoint.

    Raises:
        BrokenError: the file cannot be read, or belongs to another net.
    """
    with _read(path, module) as content:
        return int(content["progress"]["step"])


@contextlib.contextmanager
def _read(path: Path, module: nn.Module) -> Iterator[dict[str, Any]]:
    """What is in a checkpoint whose weights and buffers are now those of the module."""
    try:
        content = torch.load(path, map_location=next(module.parameters()).device, weights_only=True)
        module.load_state_dict(content["module"])
        yield content
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise BrokenError(path, f"cannot be read into this net: {problem[:200].rstrip('.')}") from None
