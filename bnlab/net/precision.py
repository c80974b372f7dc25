"""Training with less than full precision, for those who ask for it: `precision=`.

`float32`   every product in full (TF32 is off on a GPU: host.py)
`tf32`      a GPU may round the factors of matrix products and convolutions to 10 bits, forward and backward
`bfloat16`  every site's affine map is computed in bfloat16, forward and backward, from weights kept in float32, and
            gives float32 again: norms and their statistics, activations, sums, loss and update are in float32

It holds inside the `with` of a training step alone. What probes compute for themselves, and every evaluation, is in
full precision; figures of the training pass itself (batch moments, gradient norms) are of what was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.net.build import Net


def of_training(precision: str, net: Net, device: str, dtype: str) -> AbstractContextManager[object]:
    """What a training step's forward and backward pass stand in; to be entered again at every step.

    Raises:
        UsageError: a precision that this device or this dtype does not have.
    """
    if precision == "float32":
        return nullcontext()
    if dtype != "float32":
        raise UsageError("precision", f"cannot go with dtype={dtype}", precision, "Leave it out, or use dtype=float32.")
    if precision == "tf32":
        if device != "cuda":
            raise UsageError("precision", f"not known to device={device}", precision, "Use device=cuda, or bfloat16.")
        return _TensorFloat32()
    return _BFloat16(net, device)


class _TensorFloat32(AbstractContextManager["_TensorFloat32"]):
    """TF32 on inside the `with`, off outside."""

    def __enter__(self) -> _TensorFloat32:
        _allow_tf32(True)
        return self

    def __exit__(self, *_: object) -> None:
        _allow_tf32(False)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class _BFloat16(AbstractContextManager["_BFloat16"]):
    """Affine maps in bfloat16 inside the `with`. Their `forward` is wrapped there, below the wrappers of a tap
    (tap.py), which is entered inside this one: so a tap sees float32."""

    def __init__(self, net: Net, device: str) -> None:
        self._maps, self._device = [site.affine for site in net.sites], device

    def __enter__(self) -> _BFloat16:
        self._own = [vars(module).get("forward") for module in self._maps]
        for module in self._maps:
            module.__dict__["forward"] = partial(_in_bfloat16, module.forward, self._device)
        return self

    def __exit__(self, *_: object) -> None:
        for module, own in zip(self._maps, self._own, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:  # of the module's owner, from before
                module.__dict__["forward"] = own


def _in_bfloat16(forward: Callable[[Tensor], Tensor], device: str, x: Tensor) -> Tensor:
    with torch.autocast(device, torch.bfloat16):
        out = forward(x)
    return out.to(x.dtype)
