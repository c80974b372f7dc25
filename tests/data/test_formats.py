"""The file formats of real data sets: there and back, and every byte in its place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnlab.core.registry import DATA
from bnlab.data import _stored, cifar10


def _idx_file(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_an_idx_file_gives_back_its_array(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = _stored.read_idx(_idx_file(array))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), data=st.data())
def test_an_idx_file_of_another_length_is_refused(shape: list[int], data: st.DataObject) -> None:
    whole = _idx_file(np.zeros(shape, np.uint8))
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"^(no IDX file of unsigned bytes|an IDX file of )"):
        _stored.read_idx(whole[:length])
    with pytest.raises(ValueError, match=rf"has {4 + 4 * len(shape) + math.prod(shape)} bytes, not {len(whole) + 3}$"):
        _stored.read_idx(whole + b"abc")


@pytest.mark.parametrize("head", [b"\0\0\x0d\x01", b"\x1f\x8b\x08\0", b"\x01\0\x08\x01"])
def test_other_types_and_other_formats_are_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"^no IDX file of unsigned bytes: begins with"):
        _stored.read_idx(head + bytes(4))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_pixels_and_labels_of_idx_files_stay_in_their_places(name: str, tiny: Callable[..., dict[str, bytes]]) -> None:
    files, dataset = tiny(name), DATA.build(name, {})
    for split, prefix, count in ((dataset.train, "train", 200), (dataset.test, "t10k", 50)):
        assert split.x.shape == (count, 1, 28, 28)
        for n, row, column in ((0, 0, 0), (3, 27, 1), (count - 1, 5, 27)):
            byte = files[f"{prefix}-images-idx3-ubyte"][16 + 784 * n + 28 * row + column]
            assert float(split.x[n][0, row, column]) == pytest.approx(byte / 255, rel=1e-6)
            assert int(split.y[n]) == files[f"{prefix}-labels-idx1-ubyte"][8 + n]


def test_pixels_and_labels_of_cifar_records_stay_in_their_places(tiny: Callable[..., dict[str, bytes]]) -> None:
    files, dataset = tiny("cifar10"), DATA.build("cifar10", {})
    assert dataset.train.x.shape == (200, 3, 32, 32)
    assert dataset.test.x.shape == (40, 3, 32, 32)
    places = [(dataset.train, f"data_batch_{1 + n // 40}.bin", n) for n in (0, 39, 40, 121, 199)]
    for split, name, n in [*places, (dataset.test, "test_batch.bin", 7)]:
        record = files[name][3073 * (n % 40) : 3073 * (n % 40 + 1)]
        assert int(split.y[n]) == record[0]
        for channel, row, column in ((0, 0, 0), (1, 2, 31), (2, 31, 30)):
            byte = record[1 + 1024 * channel + 32 * row + column]
            assert float(split.x[n][channel, row, column]) == pytest.approx(byte / 255, rel=1e-6)


def test_cifar_files_of_broken_records_are_refused() -> None:
    files = {name: bytes(3073 * 2) for name in (*cifar10.TRAIN, cifar10.TEST)}
    files["data_batch_4.bin"] += b"\0"
    with pytest.raises(ValueError, match=r"^data_batch_4\.bin has 6147 bytes, not a multiple of 3073$"):
        cifar10.decode(files)
