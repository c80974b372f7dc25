"""Stored images against the plain float tensors they stand for, and what is done to images and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnlab.core.registry import DATA
from bnlab.core.seeds import stream
from bnlab.core.spec import RunSpec
from bnlab.data.base import (
    Augment,
    Batches,
    Dataset,
    Images,
    Split,
    normalized,
    prepared,
    probe_batch,
    sums_of,
    with_label_noise,
)
from bnlab.run.setup import assemble

CPU = torch.device("cpu")


def _bytes(count: int = 90, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0) -> torch.Tensor:
    """Channels of different mean; one pixel always black, one always white."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    raw[:, 0] //= 3
    raw[:, :, 0, 0], raw[:, :, 1, 1] = 0, 255
    return torch.from_numpy(raw)


def _pair(count: int = 90) -> tuple[Dataset, Dataset]:
    """A data set of stored images, and the same one of plain floats."""
    train, test, y = _bytes(count), _bytes(20, seed=1), torch.arange(count) % 10
    stored = Dataset(train=Images(train, y, sums_of(train.numpy())), test=Images(test, y[:20]), classes=10)
    plain = Dataset(train=Split(train / 255, y), test=Split(test / 255, y[:20]), classes=10)
    return stored, plain


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# -- the tensor they stand for ---------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("how", ["channel", "feature", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_images_give_out_what_plain_floats_give(binary: bool, how: Any, dtype: torch.dtype) -> None:
    stored, plain = (normalized(_binary(d) if binary else d, how).to(CPU, dtype) for d in _pair())
    chosen = torch.tensor([7, 0, 7, 89])
    for one, other in ((stored.train, plain.train), (stored.test, plain.test)):
        assert isinstance(one, Images)
        assert len(one) == len(other)
        assert one.shape == other.shape == (3, 6, 5)
        assert one.x.dtype == other.x.dtype == dtype
        _close(one.x, other.x)
        for part in (chosen % len(one), slice(3, 11)):
            _close(one.pick(part).x, other.pick(part).x)
            assert torch.equal(one.pick(part).y, other.pick(part).y)
            assert torch.equal(one.pick(part).x, one.x[part])  # bit for bit, however it is picked


def _binary(dataset: Dataset) -> Dataset:
    return Dataset(train=dataset.train.binarized(), test=dataset.test.binarized(), classes=10)


def test_stored_images_without_normalization_are_bytes_over_255_exactly() -> None:
    stored, plain = _pair()
    assert torch.equal(stored.train.x, plain.train.x)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 5000), shape=st.tuples(*[st.integers(1, 3)] * 3))
def test_moments_of_bytes_are_those_of_their_floats_and_exact_for_constants(
    seed: int, count: int, shape: tuple[int, int, int]
) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    raw[:, 0, 0, 0] = raw[0, 0, 0, 0]
    for binary in (False, True):
        x = (raw > 127).astype(np.float64) if binary else raw / 255
        for over in ((0,), (0, 2, 3)):
            images = Images(torch.from_numpy(raw), torch.zeros(count), sums_of(raw), binary=binary)
            mean, sd = images.moments(over)
            np.testing.assert_allclose(mean.numpy(), x.mean(axis=over, keepdims=True), rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(sd.numpy(), x.std(axis=over, keepdims=True), rtol=1e-6, atol=1e-7)
            if over == (0,):
                assert float(sd[0, 0, 0, 0]) == 0


@pytest.mark.parametrize("size", [16, "full"])
def test_batches_and_the_probe_batch_of_stored_images_are_those_of_plain_floats(size: Any) -> None:
    stored, plain = (normalized(dataset, "channel") for dataset in _pair())
    one, other = Batches(stored.train, size, 3), Batches(plain.train, size, 3)
    for step in (0, 4, 5, 11):
        _close(one.at(step).x, other.at(step).x)
        assert torch.equal(one.at(step).y, other.at(step).y)
    _close(probe_batch(stored.train, 32, 3).x, probe_batch(plain.train, 32, 3).x)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_run_on_stored_images_is_the_run_on_the_floats_they_stand_for(
    name: str,
    model: str,
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    state_bits: Callable[[Any], Any],
) -> None:
    spec = spec_of(f"data={name}", "steps=6", "probes=full", "probes.activations.batch=128", model=model)
    stored = run(spec, where="stored")

    def as_floats(dataset: Dataset, data: Any) -> Dataset:
        found = prepared(dataset, data)
        splits = (Split(split.x, split.y) for split in (found.train, found.test))
        return Dataset(train=next(splits), test=next(splits), classes=10)

    monkeypatch.setattr("bnlab.run.setup.prepared", as_floats)
    plain = run(spec, where="plain")
    assert not isinstance(plain.setup.dataset.train, Images)
    assert stored.clockless == plain.clockless
    assert state_bits(stored.setup) == state_bits(plain.setup)


@pytest.mark.parametrize("count", [10, 55, 200])
def test_a_subset_of_stored_images_is_that_of_plain_floats_and_still_stored(
    count: int, spec_of: Callable[..., RunSpec]
) -> None:
    spec = spec_of("data=cifar10", f"data.subset={count}", "data.batch_size=full", "probes=none").data
    stored = DATA.build("cifar10", {})
    plain = Dataset(train=Split(stored.train.x, stored.train.y), test=Split(stored.test.x, stored.test.y), classes=10)
    found, wanted = prepared(stored, spec), prepared(plain, spec)
    assert isinstance(found.train, Images)
    assert torch.equal(found.train.y, wanted.train.y)
    assert len(found.train) == count
    torch.testing.assert_close(found.train.x, wanted.train.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.test.x, wanted.test.x, rtol=1e-5, atol=1e-5)


# -- augmentation ----------------------------------------------------------------------------------


def _moved_slowly(image: np.ndarray[Any, Any], crop: int, down: int, right: int, flip: bool) -> np.ndarray[Any, Any]:
    """Pixel by pixel: pad, cut out at (down, right), mirror."""
    C, H, W = image.shape
    padded = np.zeros((C, H + 2 * crop, W + 2 * crop), image.dtype)
    padded[:, crop : crop + H, crop : crop + W] = image
    cut = padded[:, down : down + H, right : right + W]
    return cut[:, :, ::-1] if flip else cut


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (3, True)])
def test_an_augmented_image_is_one_of_the_crops_and_mirror_images_of_itself(crop: int, flip: bool) -> None:
    raw = _bytes(400)
    moved = Augment(crop=crop, flip=flip)(raw, stream(0, "augment", 7))
    assert moved.shape == raw.shape
    assert moved.dtype == raw.dtype
    seen = []
    for image, found in zip(raw.numpy(), moved.numpy(), strict=True):
        ways = [
            (down, right, mirrored)
            for down in range(2 * crop + 1)
            for right in range(2 * crop + 1)
            for mirrored in ((False, True) if flip else (False,))
            if np.array_equal(_moved_slowly(image, crop, down, right, mirrored), found)
        ]
        assert len(ways) == 1
        seen += ways
    drawn = np.array(seen, dtype=np.float64)
    if crop:  # uniform over 2 crop + 1 offsets, down and right independently
        sd = np.sqrt(((2 * crop + 1) ** 2 - 1) / 12)
        assert np.abs(drawn[:, :2].mean(axis=0) - crop).max() < 5 * sd / np.sqrt(400)
        assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / np.sqrt(400)
    if flip:
        assert abs(drawn[:, 2].mean() - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_augmentation_depends_on_seed_and_step_alone_and_leaves_the_choice_of_examples() -> None:
    dataset = normalized(_pair()[0], "channel")
    augment = Augment(crop=2, flip=True)
    batches = Batches(dataset.train, 16, 3, augment)
    first = batches.at(5)
    batches.at(9)
    assert torch.equal(batches.at(5).x, first.x)
    assert torch.equal(Batches(dataset.train, 16, 3, augment).at(5).x, first.x)
    assert torch.equal(Batches(dataset.train, 16, 3).at(5).y, first.y)
    full = Batches(dataset.train, "full", 3, augment)
    assert not torch.equal(full.at(0).x, full.at(1).x)
    assert not torch.equal(full.at(0).x, Batches(dataset.train, "full", 4, augment).at(0).x)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_only_training_batches_are_augmented_and_a_crop_adds_black(name: str, spec_of: Callable[..., RunSpec]) -> None:
    plain = assemble(spec_of(f"data={name}"))
    setup = assemble(spec_of(f"data={name}", "data.crop=3", "data.flip=true"))
    for split in ("train", "test"):
        found, wanted = (getattr(dataset, split).x for dataset in (setup.dataset, plain.dataset))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(setup.observer.probe_batch.x, plain.observer.probe_batch.x, rtol=1e-5, atol=1e-5)
    x = setup.batches.at(0).x
    raw = DATA.build(name, spec_of(f"data={name}").data.options).train.x.double()
    black = -raw.mean(dim=(0, 2, 3)) / raw.std(dim=(0, 2, 3), correction=0)
    cropped = 0
    for image in x:
        for row in (image[:, 0], image[:, -1]):
            cropped += int(torch.allclose(row, black[:, None].float().expand_as(row), rtol=1e-5))
    assert cropped > len(x) / 2  # 6 of 7 crops show an upper or a lower edge
    assert not torch.equal(x, plain.batches.at(0).x)


# -- binary images, label noise --------------------------------------------------------------------


def test_binary_images_are_0_and_1_from_one_half_on() -> None:
    grey = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    y = torch.zeros(1, dtype=torch.int64)
    for split in (Images(grey, y), Split(grey / 255, y)):
        assert split.binarized().x.flatten().tolist() == [0, 0, 1, 1]


def test_binary_digits_come_through_the_config(spec_of: Callable[..., RunSpec]) -> None:
    x = assemble(spec_of("data=digits", "data.binarize=true", "data.normalize=none")).dataset.train.x
    raw = DATA.build("digits", {"test_fraction": 0.2}).train.x
    assert torch.equal(x, (raw * 16 >= 8).float())


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_label_noise_replaces_its_fraction_by_uniform_classes(fraction: float) -> None:
    y = torch.arange(20000) % 10
    dataset = Dataset(train=Split(torch.zeros(20000, 1), y), test=Split(torch.zeros(9, 1), y[:9]), classes=10)
    noisy = with_label_noise(dataset, fraction)
    wrong = noisy.train.y != y
    assert abs(float(wrong.double().mean()) - 0.9 * fraction) < 5 * (0.09 * fraction / 20000) ** 0.5 + 1e-12
    if fraction:
        shares = torch.bincount(noisy.train.y[wrong], minlength=10).double() / int(wrong.sum())
        assert (shares - 0.1).abs().max() < 5 * (0.09 / int(wrong.sum())) ** 0.5
    assert torch.equal(y, torch.arange(20000) % 10)
    assert noisy.test.y is dataset.test.y
    # What is wrong at a smaller fraction is as wrong at this one.
    smaller = with_label_noise(dataset, fraction / 2).train.y
    assert torch.equal(noisy.train.y[smaller != y], smaller[smaller != y])


def test_label_noise_is_set_by_the_config_and_equal_for_every_seed(spec_of: Callable[..., RunSpec]) -> None:
    clean = assemble(spec_of("data=digits")).dataset.train.y
    noisy = [assemble(spec_of("data=digits", "data.label_noise=0.5", f"seed={s}")).dataset.train.y for s in (0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert float((noisy[0] != clean).double().mean()) == pytest.approx(0.45, abs=0.06)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=gaussian_clusters", "data.crop=2"), r"^data\.crop: needs images, and data=gaussian_clusters has none"),
        (("data=gaussian_clusters", "data.flip=true"), r"^data\.flip: needs images, and data=gaussian_clusters has"),
        (("data=gaussian_clusters", "data.binarize=true"), r"^data\.binarize: needs images, .*got true\. Leave it out"),
        (("data=digits", "data.crop=8"), r"^data\.crop: must be below the 8 pixels of the images' side, got 8\.$"),
        (
            ("data=linear_teacher", "loss=mse", "data.label_noise=0.1"),
            r"^data\.label_noise: needs classes, and data=",
        ),
        (("data.label_noise=1.5",), r"^data\.label_noise: must be at most 1, got 1\.5\.$"),
        (("data.crop=-1",), r"^data\.crop: must be at least 0, got -1\.$"),
    ],
)
def test_what_a_data_set_cannot_be_made_into_is_refused(
    overrides: tuple[str, ...], message: str, spec_of: Callable[..., RunSpec]
) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(spec_of(*overrides))
