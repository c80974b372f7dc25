"""Whether a user's module can be measured: passes that show what its forward does, refusals that name a part."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnlab.core.errors import UsageError
from bnlab.core.state import Mode, as_in, outputs_now, untouched_random_state
from bnlab.net.trace import NORM, Trace, faults, first_difference, kept, same, trace
from bnlab.net.wrap import HALF, version_of

UNSET = "draws from Python's or NumPy's generator, which no measurement sets back"
UNKEPT = "neither a checkpoint nor a measurement restores"
DRAWS = 32
"""Passes in training that show which parts a forward leaves out at random."""


def examined(module: nn.Module, x: Tensor, key: str, outputs: int | None = None) -> Trace:
    """A pass in evaluation, which shows how the parts are connected, with what passes in training show of `faults`.
    After it, no part works in place. `x` [B, ...] requires a gradient, or cannot have one.

    Raises:
        UsageError: a forward that fails, outputs that are not one tensor (with `outputs`, [B, outputs]), a forward that
            depends on what its attributes keep, or that could not be computed again for measuring.
    """
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            problem = f"{path or 'it'} is compiled by torch.jit.script, and could not be measured"
            raise UsageError(key, problem, remedy="Use it as it was before that.")
    if any(isinstance(part, nn.TransformerEncoderLayer | nn.MultiheadAttention) for part in module.modules()):
        # In evaluation its fused kernel would pass the parts by, so that nothing of them could be measured.
        torch.backends.mha.set_fastpath_enabled(False)
    in_place = [part for part in module.modules() if getattr(part, "inplace", False)]
    try:
        if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
            with torch.no_grad(), as_in(module, "running"):
                module(x.detach())  # draws their values
        written = [trace(module, x, mode) for mode in get_args(Mode)]
        for part in in_place:
            part.inplace = False  # type: ignore[assignment]  # it would overwrite what is measured
        before = kept(module)
        training, evaluated = (trace(module, x, mode) for mode in get_args(Mode))
        counted = [name for name, now in kept(module).items() if name in before and not same(before[name], now)]
    except UsageError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())
        given = f"{len(x)} x {list(x.shape[1:])}"
        raise UsageError(key, f"{type(error).__name__} in a forward of {given}: {problem}") from error
    for one in (training, evaluated):
        shape = list(one.output.shape[1:]) if isinstance(one.output, Tensor) else None
        if shape is None or (outputs is not None and shape != [outputs]):
            got = f"a {type(one.output).__name__}" if shape is None else f"[B, {', '.join(map(str, shape))}]"
            wanted = "one tensor" if outputs is None else f"one tensor [B, {outputs}]"
            remedy = "Return the outputs of the head alone, one for each class or target."
            raise UsageError(key, f"its forward must return {wanted}, and returns {got}", remedy=remedy)
        assert isinstance(one.output, Tensor)
        if one.output.dtype in HALF:
            given = str(one.output.dtype).removeprefix("torch.")
            raise UsageError(
                key, "its forward returns 16 bits, of which no loss is exact", given, "Return out.float()."
            )
    for refused, problem, remedy in (
        (
            training.changes_input or evaluated.changes_input,
            "changes its input in place",
            "Write x = x - m for x -= m.",
        ),
        (training.draws_elsewhere or evaluated.draws_elsewhere, UNSET, "Draw from torch's global generator."),
        (counted, f"changes its attribute {' '.join(counted[:1])}, which {UNKEPT}", "Keep it in a buffer."),
    ):
        if refused:
            raise UsageError(key, f"its forward {problem}", remedy=remedy)
    if training.recomputed is not None:
        problem = f"{training.recomputed} is computed again in the backward pass, as by torch.utils.checkpoint"
        raise UsageError(key, f"{problem}, and could not be measured", remedy="Call it without checkpoint.")
    for mode, a, b in zip(get_args(Mode), written, (training, evaluated), strict=True):
        differing = first_difference(a, b) if in_place else None
        if differing is not None and first_difference(b, trace(module, x, mode)) is None:
            problem = f"{differing} changes where no part works in place, as measuring needs it"
            raise UsageError(key, problem, remedy="Use inplace=False, and write forward for that.")
    evaluated.fused |= training.fused
    evaluated.hidden_norms += training.hidden_norms
    evaluated.in_training = [
        call.path for call in training.calls if isinstance(call.part, NORM) and not evaluated.of(call.path)
    ]
    evaluated.changes = any(version_of(call.out.x) != call.out.version for call in (*training.calls, *evaluated.calls))
    left_out = _left_out_at_random(module, x.detach(), evaluated) if training.draws and training.decides else set()
    evaluated.faults = dict(faults(evaluated, training, left_out))
    return evaluated


def _left_out_at_random(module: nn.Module, x: Tensor, seen: Trace) -> set[str]:
    """Which parts of a trace some forward in training leaves out at random, as stochastic depth does."""
    parts = {call.part: call.path for call in seen.calls if not call.is_function}
    called, always = set[nn.Module](), set(parts)
    handles = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in parts]
    with untouched_random_state(x.device):
        for draw in range(DRAWS):
            called.clear()
            torch.manual_seed(draw)
            outputs_now(module, x, "batch")
            always &= called
    for handle in handles:
        handle.remove()
    return {path for part, path in parts.items() if part not in always}
