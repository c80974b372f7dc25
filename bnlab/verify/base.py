"""What a check returns, and the small nets that checks are made on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnlab.core.registry import MODELS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.build import Net


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One line of the proof: two sides that must agree, and by how much they do not."""

    name: str
    left: str
    right: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # and not when it is NaN


def scalars(name: str, left: Tensor, right: Tensor, tolerance: float) -> Identity:
    a, b = left.item(), right.item()
    return Identity(name=name, left=f"{a:.6g}", right=f"{b:.6g}", error=abs(a / b - 1), tolerance=tolerance)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / (1 + b.abs().max())).item()


def small_mlp(eps: float) -> tuple[Net, Tensor, Tensor]:
    net = random_net("mlp", "relu", "batch", (8,), 0, depth=3, width=12, eps=eps)
    return with_batch(net, (16, 8))


def small_cnn(eps: float) -> tuple[Net, Tensor, Tensor]:
    net = random_net(
        "cnn", "relu", "batch", (2, 6, 6), 0, channels=[4, 5], strides=1, kernel=3, head="average", eps=eps
    )
    return with_batch(net, (10, 2, 6, 6))


def with_batch(net: Net, shape: tuple[int, ...]) -> tuple[Net, Tensor, Tensor]:
    generator = stream(0, "data", "verify", *shape)
    net.module.double()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(10, shape[:1], generator=generator)


def random_net(
    model: str, activation: Any, norm: str, shape: tuple[int, ...], seed: int, *, eps: float, **options: Any
) -> Net:
    settings = {"eps": eps, "momentum": 0.1, "affine": True} if norm != "none" else {}
    of_model = ModelSpec(
        name=model, activation=activation, init="he", init_scale=1.0, init_std=0.01, bias="auto", options=options
    )
    of_norm = NormSpec(name=norm, layers="all", every=1, position="before", options=settings)
    net = MODELS.build(model, options, shape, 10, of_model, of_norm, seed)
    assert isinstance(net, Net)
    return net
