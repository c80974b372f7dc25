"""The IDX format of MNIST and its kin. Legend: N images of H x W pixels.

Two zero bytes, the type (8: unsigned bytes), the number of dimensions, then each dimension and the values, all
big-endian, the last dimension fastest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnlab.data._stored import Arrays
from bnlab.files.sources import File

LABELS, IMAGES = b"\x00\x00\x08\x01", b"\x00\x00\x08\x03"
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def files(sizes: tuple[int, int, int, int], sha256: tuple[str, str, str, str]) -> tuple[File, ...]:
    """The four files of a data set in this format."""
    return tuple(
        File(name=name, size=size, sha256=digest, magic=IMAGES if "images" in name else LABELS)
        for name, size, digest in zip(NAMES, sizes, sha256, strict=True)
    )


def read_idx(data: bytes) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([5, 0, 4]))
    array([5, 0, 4], dtype=uint8)

    Raises:
        ValueError: it is none, or its length does not agree with its dimensions.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"no IDX file of unsigned bytes: begins with {data[:4]!r}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"an IDX file of {data[3]} dimensions has {start} bytes before its values, not {len(data)}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=data[3], offset=4))
    if len(data) != start + math.prod(shape):
        raise ValueError(f"an IDX file of shape {shape} has {start + math.prod(shape)} bytes, not {len(data)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def decode(contents: Mapping[str, bytes]) -> Arrays:
    """Images [N, 1, H, W] and labels [N] of both splits."""
    train_x, train_y, test_x, test_y = (read_idx(contents[name]) for name in NAMES)
    return Arrays(train_x=train_x[:, None], train_y=train_y, test_x=test_x[:, None], test_y=test_y)
