"""Exact resume: everything a run depends on at the start of a step, in one file, with a checksum of the whole.

bnlab's own random choices are functions of the seed and the step (seeds.py) and need no state here; torch's global
generator, from which a plugin's module may draw, is saved. Two checkpoints are kept: where the newest is damaged, the
one before it is used, and said (decision 023).
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import torch
from torch import Tensor, nn

from bnlab.record.folder import BrokenError, RunFolder
from bnlab.record.journal import refuse_damage
from bnlab.run.observe import Observer

SEAL = b"\nbnlab crc32c %08x\n"
"""The end of the file, behind what torch writes and reads: the checksum of all bytes before."""
SEAL_BYTES = len(SEAL % 0)

Found = TypeVar("Found")


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a run: the next `step`, the loss of the first step, the length of the journal so far, the seconds
    spent, in all and on measuring, and the most nets whose steps were computed together with its own."""

    step: int = 0
    initial_loss: float | None = None
    journal_bytes: int = 0
    run_s: float = 0.0
    measure_s: float = 0.0
    nets: int = 1


def save(
    folder: RunFolder,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    observer: Observer,
    journal_crc: int,
    random: Tensor | None = None,
) -> None:
    """Write the checkpoint; the one before it is kept. `journal_crc`: the checksum of the journal so far. `random`: the
    state of torch's global generator, if it is not the present one."""
    buffer = io.BytesIO()
    content: dict[str, Any] = {
        "progress": asdict(progress),
        "journal_crc": journal_crc,
        "module": _whole(module.state_dict()),
        "optimizer": _whole(optimizer.state_dict()),
        "random": torch.get_rng_state() if random is None else random,
        "carries": {
            probe: {name: torch.from_numpy(x) for name, x in carry.items()} for probe, carry in observer.carries.items()
        },
    }
    torch.save(content, buffer)
    data = buffer.getvalue()
    folder.write_checkpoint(data + SEAL % google_crc32c.value(data))


def _whole(value: Any) -> Any:
    """The same with copies of tensors that are parts of larger ones, which would be saved with them."""
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, Mapping):
        return type(value)((key, _whole(item)) for key, item in value.items())  # type: ignore[call-arg]
    return [_whole(item) for item in value] if isinstance(value, list) else value


def restore(
    folder: RunFolder, module: nn.Module, optimizer: torch.optim.Optimizer, observer: Observer, steps: int
) -> tuple[Progress, str | None]:
    """Restore everything from the newest checkpoint that is whole, and fits the run's `steps` and its journal; a new
    `Progress` if there is none. And what was wrong with a newer one, which is removed.

    Raises:
        BrokenError: no checkpoint can be used.
    """
    if not folder.has_checkpoint:
        return Progress(), None

    def use(content: dict[str, Any]) -> Progress:
        progress = Progress(**content["progress"])
        if progress.journal_bytes or progress.step:
            refuse_damage(folder.journal_file, progress.journal_bytes, content.get("journal_crc"))
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"].cpu())
        observer.carries = {
            probe: {name: x.cpu().numpy() for name, x in carry.items()} for probe, carry in content["carries"].items()
        }
        return progress

    found, used, problem = _read(folder, module, steps, use)
    if used == folder.previous_file:
        used.replace(folder.checkpoint_file)  # or the next one to be saved would push it out
    return found, problem and f"{problem}; {used.name}, of step {found.step}, is used"


def restore_weights(folder: RunFolder, module: nn.Module, steps: int) -> int:
    """Restore weights and buffers alone, into a net that is not trained further; returns the step of the checkpoint.

    Raises:
        BrokenError: no checkpoint can be used.
    """
    return _read(folder, module, steps, lambda content: int(content["progress"]["step"]))[0]


def _read(
    folder: RunFolder, module: nn.Module, steps: int, use: Callable[[dict[str, Any]], Found]
) -> tuple[Found, Path, str | None]:
    """What `use` makes of the first checkpoint that it accepts, whose weights and buffers are now those of the module;
    its file; and what was wrong with a newer one. Weights that are not finite count as wrong where there is another
    checkpoint: a run that is about to diverge has such weights for a step."""
    problems: dict[Path, str] = {}
    for finite in (True, False):
        for path in (folder.checkpoint_file, folder.previous_file):
            try:
                content = _content(path, next(module.parameters()).device)
                _refuse(content, steps, finite=finite)
                _load(module, content)
                found = use(content)
            except FileNotFoundError:
                continue
            except Exception as error:
                if _is_of_the_machine(error):
                    raise
                words = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
                problems[path] = (words or type(error).__name__)[:200].rstrip(".")
                continue
            newest = folder.checkpoint_file
            problem = problems.get(newest) if path != newest else None
            return found, path, f"{newest.name} cannot be used: {problem}" if problem else None
    path, problem = next(iter(problems.items()), (folder.checkpoint_file, "it is gone"))
    others = "".join(f"; {other.name}: {words}" for other, words in list(problems.items())[1:])
    raise BrokenError(path, f"cannot be used: {problem}{others}. What the run had computed is lost")


def _content(path: Path, device: torch.device) -> dict[str, Any]:
    """What is in a checkpoint, which is read as a whole before anything of it is used."""
    data = path.read_bytes()
    if not data:
        raise ValueError("it is empty")
    sealed = re.fullmatch(rb"\nbnlab crc32c ([0-9a-f]{8})\n", data[-SEAL_BYTES:])
    if sealed and int(sealed[1], 16) != google_crc32c.value(data[:-SEAL_BYTES]):
        raise ValueError("it is damaged, its checksum is another one")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:  # of an earlier version, or cut off
            if not sealed and (damaged := parts.testzip()):
                raise ValueError(f"it is damaged, in {damaged}")
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        raise ValueError(f"it is damaged: {error}") from None
    return content


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error says nothing about the file: there is no memory to read it, or no permission."""
    known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError | PermissionError)
    return known or "DefaultCPUAllocator" in str(error)


def _refuse(content: dict[str, Any], steps: int, *, finite: bool) -> None:
    """Raises ValueError for what no run of so many steps has written."""
    progress = Progress(**content["progress"])
    if type(progress.step) is not int or not 0 <= progress.step <= steps:
        raise ValueError(f"it is of step {progress.step}, in a run of {steps}")
    numbers = (progress.run_s, progress.measure_s, progress.initial_loss or 0.0)
    if type(progress.journal_bytes) is not int or not all(math.isfinite(number) for number in numbers):
        raise ValueError("its progress has values that no run has")
    if finite:
        weights = [x for x in content["module"].values() if isinstance(x, Tensor) and x.is_floating_point()]
        if not all(bool(torch.isfinite(x).all()) for x in weights):
            raise ValueError("it has weights that are not finite")


def _load(module: nn.Module, content: dict[str, Any]) -> None:
    try:
        module.load_state_dict(content["module"])
    except RuntimeError as error:
        raise ValueError(f"it is of another net: {error}") from None
