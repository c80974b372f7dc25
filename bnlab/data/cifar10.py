"""CIFAR-10, binary version: 60,000 colour 32x32 images in 10 classes (Krizhevsky 2009).

A record is one byte of label and the 1,024 red, green and blue values of the image, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bnlab.core.registry import DATA
from bnlab.data import _stored
from bnlab.data.base import Dataset
from bnlab.files.sources import SOURCES, File, Source

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"

SOURCES["cifar10"] = Source(
    name="cifar10",
    files=tuple(
        File(name=name, size=10_000 * RECORD, sha256=digest)
        for name, digest in (
            (TRAIN[0], "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            (TRAIN[1], "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            (TRAIN[2], "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            (TRAIN[3], "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            (TRAIN[4], "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            (TEST, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        )
    ),
    folders=("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar10", "."),
    archive="cifar-10-binary.tar.gz",
    urls=(
        "https://www.cs.toronto.edu/~kriz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10",
    ),
    unread=("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10/cifar-10-batches-py"),
)


@DATA.register("cifar10")
def cifar10() -> Dataset:
    """x [N, 3, 32, 32] with red, green and blue from 0 to 1, 50,000 for training and 10,000 for the test."""
    return _stored.load(SOURCES["cifar10"], decode, classes=10)


def decode(contents: Mapping[str, bytes]) -> _stored.Arrays:
    """Images [N, 3, 32, 32] and labels [N] of both splits.

    Raises:
        ValueError: a file does not consist of whole records.
    """
    (train_x, train_y), (test_x, test_y) = (_records(contents, names) for names in (TRAIN, (TEST,)))
    return _stored.Arrays(train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)


def _records(contents: Mapping[str, bytes], names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    tables = []
    for name in names:
        if len(contents[name]) % RECORD:
            raise ValueError(f"{name} has {len(contents[name])} bytes, not a multiple of {RECORD}")
        tables.append(np.frombuffer(contents[name], np.uint8).reshape(-1, RECORD))
    x = np.concatenate([table[:, 1:] for table in tables]).reshape(-1, *SHAPE)
    return x, np.concatenate([table[:, 0] for table in tables])
