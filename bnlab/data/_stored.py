"""Decoded data sets, kept on disk as they are used: one array a file, mapped into memory, so that a second load takes
no time and all runs on a machine share one copy. Legend: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnlab.data.base import Dataset, Images, sums_of
from bnlab.files.sources import File, Source, decoded, read, roots

STALE_S = 3600.0
"""A half-written decoded set that is older than this has no living writer: writing one takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Images [N, C, H, W] and labels [N] of both splits."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.uint8]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.uint8]


Table = Mapping[str, NDArray[Any]]
"""The fields of `Arrays`, and `sums` of the training images: what is kept."""


def load(source: Source, decode: Callable[[Mapping[str, bytes]], Arrays], classes: int) -> Dataset:
    """The data set: in its decoded form where that is kept, else from its files.

    Raises:
        DataError: the files are missing or damaged.
    """
    homes = decoded(source)
    for home in homes:
        if (table := _kept(home)) is not None:
            return _dataset(table, classes)
    table = _table(decode(read(source, roots())), classes)
    for home in homes:
        if (shared := _keep(home, table)) is not None:
            return _dataset(shared, classes)
    # Nowhere to write: a copy of its own, since torch takes no arrays that cannot be written to.
    return _dataset({name: array.copy() for name, array in table.items()}, classes)


def _table(arrays: Arrays, classes: int) -> Table:
    for x, y in ((arrays.train_x, arrays.train_y), (arrays.test_x, arrays.test_y)):
        if len(x) != len(y):
            raise ValueError(f"{len(x)} images with {len(y)} labels")
        if len(y) and y.max() >= classes:
            raise ValueError(f"label {y.max()} among {classes} classes")
    table: dict[str, NDArray[Any]] = {field.name: getattr(arrays, field.name) for field in fields(arrays)}
    return table | {"sums": sums_of(arrays.train_x)}


def _kept(home: Path) -> Table | None:
    """The arrays in this folder, mapped into memory: pages are read when they are used and shared between processes.
    Copy-on-write, so that nobody can change the file."""
    names = [field.name for field in fields(Arrays)] + ["sums"]
    try:
        return {name: np.load(home / f"{name}.npy", mmap_mode="c") for name in names}
    except (OSError, ValueError):  # not there; or cut off by a full disk
        return None


def _keep(home: Path, table: Table) -> Table | None:
    """Write the arrays into this folder, all or nothing, and map them; None where that cannot be done."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        for left in home.parent.glob(f".{home.name}.*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    except OSError:
        return None
    try:
        for name, array in table.items():
            np.save(part / f"{name}.npy", array)
        part.chmod(0o755)  # others on the machine may share it
        if _kept(home) is None:
            shutil.rmtree(home, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(part, home)
    except OSError:
        pass
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _kept(home)


def _dataset(table: Table, classes: int) -> Dataset:
    def images(split: str, sums: NDArray[np.int64] | None = None) -> Images:
        raw, y = (torch.from_numpy(table[f"{split}_{part}"]) for part in "xy")
        return Images(raw, y.long(), sums)

    return Dataset(train=images("train", np.asarray(table["sums"])), test=images("test"), classes=classes)


LABELS, IMAGES = b"\x00\x00\x08\x01", b"\x00\x00\x08\x03"
# The IDX format of MNIST and its kin: two zero bytes, the type (8: unsigned bytes), the number of dimensions, then each
# dimension and the values, all big-endian, the last dimension fastest.
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_files(sizes: tuple[int, int, int, int], sha256: tuple[str, str, str, str]) -> tuple[File, ...]:
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


def decode_idx(contents: Mapping[str, bytes]) -> Arrays:
    """Images [N, 1, H, W] and labels [N] of both splits."""
    train_x, train_y, test_x, test_y = (read_idx(contents[name]) for name in NAMES)
    return Arrays(train_x=train_x[:, None], train_y=train_y, test_x=test_x[:, None], test_y=test_y)
