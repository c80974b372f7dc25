"""What is kept decoded: made once, mapped and not copied, never half-written, never trusted when it is broken."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnlab.core.errors import DataError
from bnlab.data import _stored
from bnlab.data._stored import STALE_S, Arrays, load
from bnlab.data.base import Images
from bnlab.files.sources import SOURCES, decoded

Tiny = Callable[..., dict[str, bytes]]


@pytest.fixture
def home(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the small MNIST is kept, not yet decoded."""
    monkeypatch.setenv("BNLAB_DATA", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, content in tiny("mnist").items():
        (folder / name).write_bytes(content)
    return decoded(SOURCES["mnist"])[0]


def _load() -> Any:
    return load(SOURCES["mnist"], _stored.decode_idx, classes=10)


def _bytes_of(dataset: Any) -> list[bytes]:
    splits = (dataset.train, dataset.test)
    return [part.numpy().tobytes() for split in splits for part in (split.x, split.y)]


def test_a_set_is_decoded_once_and_then_needs_no_files(home: Path, bits_of: Any) -> None:
    first = _bytes_of(_load())
    for file in (home.parent.parent / "mnist").iterdir():
        file.unlink()
    assert _bytes_of(_load()) == first
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_other_content_is_kept_elsewhere(home: Path) -> None:
    _load()
    files = SOURCES["mnist"].files
    other = dataclasses.replace(SOURCES["mnist"], files=(dataclasses.replace(files[0], sha256="0" * 64), *files[1:]))
    with pytest.raises(DataError, match="its checksum is wrong"):
        load(other, _stored.decode_idx, classes=10)


def test_images_are_mapped_and_writes_to_them_stay_private(home: Path) -> None:
    images = _load().train
    assert isinstance(images, Images)
    file = home / "train_x.npy"
    before = file.read_bytes()
    assert str(file) in Path("/proc/self/maps").read_text()
    images.raw.fill_(7)
    assert file.read_bytes() == before
    assert float(_load().train.raw.float().std()) == pytest.approx(74, abs=2)  # uniform bytes: 256 / sqrt(12)


@pytest.mark.parametrize("spoil", ["cut", "gone", "nonsense"])
def test_a_broken_decoded_form_is_made_again(home: Path, spoil: str) -> None:
    first = _bytes_of(_load())
    file = home / "train_x.npy"
    if spoil == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:50_000] if spoil == "cut" else b"nonsense")
    assert _bytes_of(_load()) == first
    assert file.stat().st_size > 200 * 784


def test_where_nothing_can_be_written_the_set_is_held_in_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _bytes_of(_load())

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    for way in ("tempfile.mkdtemp", "numpy.save"):
        for name in ("sums", "train_x"):
            (home / f"{name}.npy").unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(way, refuse)
            assert _bytes_of(_load()) == expected
        assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_where_the_first_root_cannot_be_written_the_user_s_cache_is_used(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "decoded").write_text("in the way")
    first = _bytes_of(_load())
    assert (decoded(SOURCES["mnist"])[1] / "train_x.npy").is_file()
    assert _bytes_of(_load()) == first


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_running_one_kept(home: Path) -> None:
    old, young = home.parent / f".{home.name}.old", home.parent / f".{home.name}.young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "train_x.npy").write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * STALE_S))
    _load()
    assert sorted(path.name for path in home.parent.iterdir()) == sorted([young.name, home.name])


def _load_in_a_process(queue: Any) -> None:
    queue.put(_bytes_of(_load()))


def test_several_processes_that_decode_at_once_agree_and_leave_one_copy(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_load_in_a_process, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(one == found[0] for one in found)
    assert _bytes_of(_load()) == found[0]
    assert [path.name for path in home.parent.iterdir()] == [home.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_y": np.zeros(3, np.uint8)}, "^4 images with 3 labels$"),
        ({"test_y": np.full(4, 10, np.uint8)}, "^label 10 among 10 classes$"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, home: Path) -> None:
    x, y = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.uint8)
    arrays = Arrays(**({"train_x": x, "train_y": y, "test_x": x, "test_y": y} | changes))
    with pytest.raises(ValueError, match=message):
        load(SOURCES["mnist"], lambda contents: arrays, classes=10)
    assert not home.exists()


def test_labels_are_classes_and_images_floats_of_the_run_s_dtype(home: Path) -> None:
    dataset = _load().to(torch.device("cpu"), torch.float64)
    assert dataset.train.y.dtype == torch.int64
    assert dataset.train.x.dtype == dataset.train.pick(slice(2)).x.dtype == torch.float64
