"""What a training step keeps in memory for its backward pass, and how many parameters a net has.

Between its forward and its backward pass a step keeps the tensors that autograd needs: inputs of affine maps, outputs
of nonlinearities, what a norm saves. They grow with the batch, parameters and their gradients do not; in larger nets
they are most of what training needs (Chen et al. 2016). Their bytes are a function of the net, the batch and torch's
version, and not of the machine or of what else it does, as the peak memory of a process is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import State, outputs_at
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot


@PROBES.register("memory")
class Memory:
    """One forward pass of the training batch."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "saved_bytes": "bytes of all tensors that autograd keeps from the forward pass of the training batch for its "
        "backward pass, each storage once, without parameters and the batch itself (own; Chen et al. 2016 reduce it)",
        "parameters": "numbers that training changes",
    }

    def measure(self, snapshot: Snapshot) -> Raw:
        batch, before = snapshot.batch, snapshot.before
        trained = {name for name, param in snapshot.net.module.named_parameters() if param.requires_grad}
        params = {name: value.detach().requires_grad_(name in trained) for name, value in before.params.items()}
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            at = State(params, before.buffers, before.random)
            loss = snapshot.objective(outputs_at(snapshot.net.module, at, batch.x, "batch"), batch.y)
        for x in (*params.values(), batch.x, batch.y):
            kept.pop(x.untyped_storage().data_ptr(), None)
        del loss  # which held them, so that no two had one address
        count = sum(params[name].numel() for name in trained)
        return {"counts": torch.tensor([sum(kept.values()), count], device=batch.x.device)}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        return dict(zip(self.metrics, np.asarray(raw["counts"], np.float64), strict=True)), carry
