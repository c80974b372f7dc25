"""Images held as bytes and given out as floats. Legend: N images, B of a batch, C channels, H x W pixels.

Float32 images take four times the memory of the bytes they come from, and each process has its own. So the bytes stay
as they are, in pages that all processes on a machine share, and only what is picked from them becomes floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 4096
"""Images at a time, where all are gone through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Random changes of training images: a crop of the image's own size after padding with `crop` black pixels on every
    side, and, if `flip`, a mirror image of every second one, on average."""

    crop: int
    flip: bool

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """raw [B, C, H, W] -> the same shape. The draws are made on the CPU, so that they are the same on every
        device; the images are moved where they are."""
        B, C, H, W = raw.shape
        shift = torch.randint(2 * self.crop + 1, (B, 2), generator=generator).to(raw.device)
        flipped = torch.rand(B, generator=generator).to(raw.device) < 0.5 if self.flip else None
        rows = torch.arange(H, device=raw.device) + shift[:, :1]  # [B, H]
        columns = torch.arange(W, device=raw.device).expand(B, W)
        if flipped is not None:
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        columns = columns + shift[:, 1:]  # [B, W]
        padded = F.pad(raw, [self.crop] * 4)
        places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # [B, H, W]
        return padded.flatten(2).gather(2, places.reshape(B, 1, -1).expand(B, C, -1)).view(B, C, H, W)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Exact sums over the bytes of `count` images. `table` [3, C, H, W]: of the values, of their squares, and of ones
    where a value is in the upper half."""

    count: int
    table: NDArray[np.int64]

    @classmethod
    def of(cls, raw: NDArray[np.uint8]) -> Sums:
        """raw [N, C, H, W]."""
        table = np.zeros((3, *raw.shape[1:]), np.int64)
        for start in range(0, len(raw), CHUNK):  # 4,096 squares of bytes fit into 32 bits
            part = raw[start : start + CHUNK]
            table[0] += part.sum(axis=0, dtype=np.uint32)
            table[1] += np.einsum("nchw,nchw->chw", part, part, dtype=np.uint32, casting="unsafe")
            table[2] += (part > 127).sum(axis=0, dtype=np.uint32)
        return cls(count=len(raw), table=table)

    def moments(self, over: tuple[int, ...], *, binarized: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the values 0 to 1, in float64 and over these of the dimensions N, C, H, W."""
        # In Python's integers, which know no overflow: so a constant has a standard deviation of 0 and nothing else.
        exact = self.table[:, None].astype(object)  # [3, 1, C, H, W]
        first, second, bright = (sums.sum(axis=over, keepdims=True) for sums in exact)
        count = self.count * (self.table[0].size // first.size)
        first, second, top = (bright, bright, 1) if binarized else (first, second, 255)
        mean = (first / (count * top)).astype(np.float64)
        variance = ((count * second - first * first) / (count * top) ** 2).astype(np.float64)
        return torch.from_numpy(mean), torch.from_numpy(variance).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How floats are made of what is stored: values 0 to 1 in `dtype`, only 0 and 1 if `binarized`, then less `mean`
    and over `sd`, each [1, C or 1, H or 1, W or 1] in float64."""

    dtype: torch.dtype = torch.float32
    binarized: bool = False
    mean: Tensor | None = None
    sd: Tensor | None = None

    def maker(self, raw: Tensor) -> Callable[[Tensor], Tensor]:
        """The function for selections of `raw`: [B, C, H, W] -> [B, C, H, W]."""
        dtype = self.dtype
        half, top = (128, 255) if raw.dtype == torch.uint8 else (0.5, 1)
        if self.mean is None or self.sd is None:
            return lambda x: (x >= half).to(dtype) if self.binarized else x.to(dtype) / top
        scale = (1 / self.sd / (1 if self.binarized else top)).to(raw.device, dtype)
        shift = (-self.mean / self.sd).to(raw.device, dtype)

        def make(x: Tensor) -> Tensor:
            # Three times as fast on the CPU as one addcmul over floats made before.
            return ((x >= half if self.binarized else x) * scale).add_(shift)

        return make


class Images(Tensor):
    """What `Split.x` is for stored images: to those who use it a tensor [N, C, H, W] of the run's dtype.

    A selection along the first dimension converts what it selects. Any other operation is right too, at the price of
    converting everything first; writing is refused.
    """

    raw: Tensor
    sums: Sums | None
    making: Making
    make: Callable[[Tensor], Tensor]

    @staticmethod
    def over(raw: Tensor, sums: Sums | None = None, making: Making | None = None) -> Images:
        """Of `raw` [N, C, H, W]: bytes with their sums, or floats from 0 to 1."""
        images: Images = Tensor._make_subclass(Images, raw)
        images.raw, images.sums, images.making = raw, sums, making or Making()
        images.make = images.making.maker(raw)
        return images

    def made(self, **changes: Any) -> Images:
        """The same images with something else in `making`."""
        return Images.over(self.raw, self.sums, replace(self.making, **changes))

    def only(self, chosen: Tensor) -> Images:
        """A copy of the chosen images alone, with sums of their own."""
        raw = self.raw[chosen]
        return Images.over(raw, Sums.of(raw.numpy()) if self.sums is not None else None, self.making)

    def moved(self, device: torch.device, dtype: torch.dtype) -> Images:
        """On the device, to be given out in `dtype`."""
        return Images.over(self.raw.to(device), self.sums, replace(self.making, dtype=dtype))

    def augmented(self, chosen: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
        """The chosen ones, changed at random before they are made floats: what a crop adds is black."""
        return self.make(augment(self.raw.index_select(0, chosen), generator))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ABOUT_SHAPES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if isinstance(first, Images):
            if func in ABOUT_TYPES:
                return func(first.make(first.raw[:0]), *args[1:], **kwargs)
            if func is Tensor.__getitem__ and not isinstance(args[1], tuple | None):
                picked = first.raw[args[1]]
                return first.make(picked) if picked.ndim == first.raw.ndim else first.make(picked[None])[0]
            if func is Tensor.index_select and args[1:2] == (0,):
                return first.make(first.raw.index_select(*args[1:], **kwargs))
            name = getattr(func, "__name__", "")
            if func is Tensor.__setitem__ or (name.endswith("_") and not name.endswith("__")):
                raise TypeError("stored images cannot be written to: select some, or clone them")
        return func(*_converted(args), **_converted(kwargs))


ABOUT_SHAPES = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.__len__,
    Tensor.__hash__,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "is_cuda", "requires_grad")),
}
"""What the bytes answer as the floats would."""

ABOUT_TYPES = {
    Tensor.new_zeros,
    Tensor.new_ones,
    Tensor.new_empty,
    Tensor.new_full,
    Tensor.new_tensor,
    Tensor.is_floating_point,
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
}
"""What any float of the same kind answers."""


def _converted(value: Any) -> Any:
    if isinstance(value, Images):
        return torch.cat([value[start : start + CHUNK] for start in range(0, max(1, len(value)), CHUNK)])
    if isinstance(value, list | tuple):
        return type(value)(_converted(item) for item in value)
    return {key: _converted(item) for key, item in value.items()} if isinstance(value, dict) else value
