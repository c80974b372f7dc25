"""Covariate shifts of inputs, and the shift of class priors; of the test split alone. Legend: N examples, C channels,
H x W pixels, D features, K classes.

They change what a camera would have seen: values from 0 to 1 before anything is done to them, and are not cut off at 0
and 1, so that each is exactly what its formula says. Strength 0 is no shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.seeds import stream
from bnlab.core.spec import DataSpec


def brightness(x: Tensor, s: float) -> Tensor:
    """x + s."""
    return x + s


def contrast(x: Tensor, s: float) -> Tensor:
    """m + (1 - s) (x - m), m the mean of each image: at s = 1 nothing is left but its mean."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1 - s) * (x - mean)


def blur(x: Tensor, s: float) -> Tensor:
    """Gaussian of standard deviation s pixels; beyond its edges an image is mirrored, so that its mean stays."""
    rows, columns = (blurring(side, s).to(x) for side in x.shape[2:])
    return rows @ x @ columns.T


def blurring(side: int, s: float) -> Tensor:
    """The matrix [side, side] that blurs one line of pixels, in float64: symmetric, its rows of sum 1.

    >>> blurring(2, 0.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    radius = math.ceil(4 * s)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / (s or 1.0)) ** 2)
    places = (torch.arange(side)[:, None] + offsets) % (2 * side)  # [side, 2 radius + 1]
    mirrored = torch.minimum(places, 2 * side - 1 - places)
    table = torch.zeros(side, side, dtype=torch.float64)
    return table.scatter_add_(1, mirrored, (weights / weights.sum()).expand(side, -1))


def noise(x: Tensor, s: float) -> Tensor:
    """x + s n with n ~ N(0, 1) for every value: the same n at every strength."""
    return x + s * torch.randn(x.shape, generator=stream(0, "data", "shift", "noise")).to(x)


def rotation(x: Tensor, s: float) -> Tensor:
    """By s degrees, anticlockwise, about the centre; between pixels linear, and black where nothing was."""
    N, C, H, W = x.shape
    cos, sin = math.cos(math.radians(s)), math.sin(math.radians(s))
    # Where each pixel comes from, in a picture from -1 to 1 in both directions, rows downwards.
    source = torch.tensor([[[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]]], dtype=torch.float64)
    grid = F.affine_grid(source, [1, 1, H, W], align_corners=False).to(x)
    return F.grid_sample(x.reshape(1, N * C, H, W), grid, align_corners=False).view(N, C, H, W)


def colour(x: Tensor, s: float) -> Tensor:
    """Red + s and blue - s: a warmer light, of the same mean."""
    return x + s * torch.tensor([1.0, 0.0, -1.0]).to(x).view(1, 3, 1, 1)


def hue(x: Tensor, s: float) -> Tensor:
    """Every colour turned by s degrees about the line of greys: at 120 red becomes green, green blue, and blue red. The
    mean of red, green and blue stays, and so do greys, but for rounding."""
    cos, sin = math.cos(math.radians(s)), math.sin(math.radians(s)) / 3**0.5
    row = torch.tensor([(1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin], dtype=torch.float64)
    return torch.einsum("dc,nchw->ndhw", torch.stack([row.roll(k) for k in range(3)]).to(x), x)


SHIFTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "blur": blur,
    "noise": noise,
    "rotation": rotation,
    "colour": colour,
    "hue": hue,
}
"""Those of inputs; `prior` is one of which examples there are."""

RANGES = {"contrast": (-math.inf, 1.0), "blur": (0.0, math.inf), "noise": (0.0, math.inf), "prior": (0.0, math.inf)}
"""The strengths that mean something; of the others, all."""
OF_COLOURS = ("colour", "hue")
OF_IMAGES = ("contrast", "blur", "rotation", *OF_COLOURS)


def class_counts(counts: list[int], s: float) -> list[int]:
    """How many examples of each class a shift of priors keeps: of class k of K the share 10^(-s k / (K - 1)), so that
    the first class becomes 10^s times as frequent as the last, rounded, and at least one.

    >>> class_counts([100, 100, 100], 1.0)
    [100, 32, 10]
    """
    last = max(1, len(counts) - 1)
    return [min(count, max(1, round(count * 10 ** (-s * k / last)))) for k, count in enumerate(counts)]


def kept(y: Tensor, classes: int, s: float) -> Tensor:
    """The indices of the examples that a shift of priors keeps, in their order; at a larger s, some of these."""
    drawn = torch.randperm(len(y), generator=stream(0, "data", "shift", "prior"))
    of_class = [drawn[y[drawn] == label] for label in range(classes)]
    counts = class_counts([len(found) for found in of_class], s)
    return torch.cat([found[:count] for found, count in zip(of_class, counts, strict=True)]).sort().values


def refuse(spec: DataSpec, input_shape: tuple[int, ...], classes: int | None) -> None:
    """Raises UsageError for a shift that makes no sense for this data, or a strength that makes none for the shift."""
    shift, s, name = spec.shift, spec.shift_strength, f"data={spec.name}"
    if shift == "none":
        if s is not None:
            raise UsageError(
                "data.shift_strength", "there is no shift", s, "Choose one in data.shift, or leave it out."
            )
        return
    if s is None:
        raise UsageError("data.shift_strength", f"missing, and data.shift={shift} needs one", remedy="0 is no shift.")
    low, high = RANGES.get(shift, (-math.inf, math.inf))
    if not low <= s <= high:
        bound = f"at least {low:g}" if s < low else f"at most {high:g}"
        raise UsageError("data.shift_strength", f"of {shift} must be {bound}", s)
    if shift in OF_IMAGES and len(input_shape) != 3:
        raise UsageError("data.shift", f"needs images, and {name} has none", shift, "Use brightness, noise or prior.")
    if shift in OF_COLOURS and input_shape[0] != 3:
        raise UsageError("data.shift", f"needs colour images, and those of {name} are grey", shift, "Use brightness.")
    if shift == "prior" and classes is None:
        raise UsageError("data.shift", f"needs classes, and {name} has none", shift, "Use brightness or noise.")
