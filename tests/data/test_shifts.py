"""Each shift against its closed form or scipy; that training never sees one; what is refused, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec, Shift
from bnlab.data._shifts import OF_COLOURS, SHIFTS, blurring, class_counts
from bnlab.data.base import Dataset, Images, Split, shifted
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_shift_of_the_spec_is_there_and_no_other() -> None:
    assert set(SHIFTS) | {"none", "prior"} == set(get_args(Shift))


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_strength_0_is_no_shift(name: str) -> None:
    x = _images(4, 3, 8, 7)
    torch.testing.assert_close(SHIFTS[name](x, 0.0), x, rtol=0, atol=1e-15)


def test_brightness_is_added() -> None:
    x = _images(4, 1, 8, 8)
    assert torch.equal(SHIFTS["brightness"](x, -0.3), x - 0.3)


@pytest.mark.parametrize("strength", [0.25, 1.0, -0.5])
def test_contrast_scales_each_image_about_its_own_mean(strength: float) -> None:
    x = _images(4, 3, 5, 6)
    for before, after in zip(x.numpy(), SHIFTS["contrast"](x, strength).numpy(), strict=True):
        assert after.mean() == pytest.approx(before.mean(), rel=1e-12)
        assert after.std() == pytest.approx((1 - strength) * before.std(), rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(after - before.mean(), (1 - strength) * (before - before.mean()), atol=1e-12)


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.5, 9.0])
def test_blur_is_scipy_s_gaussian_filter_and_keeps_means(sd: float) -> None:
    x = _images(3, 2, 8, 11)
    found = SHIFTS["blur"](x, sd)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sd, sd), mode="reflect", radius=math.ceil(4 * sd))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    torch.testing.assert_close(found.mean(dim=(2, 3)), x.mean(dim=(2, 3)), rtol=1e-12, atol=0)


def test_blur_of_an_impulse_is_the_gaussian_and_keeps_its_sum() -> None:
    x = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    x[0, 0, 15, 15] = 1
    found = SHIFTS["blur"](x, 1.5)[0, 0]
    assert found.sum().item() == pytest.approx(1, rel=1e-12)
    assert (found[15, 18] / found[15, 15]).item() == pytest.approx(math.exp(-(3**2) / (2 * 1.5**2)), rel=1e-12)
    assert (found[12, 19] / found[15, 15]).item() == pytest.approx(math.exp(-(3**2 + 4**2) / (2 * 1.5**2)), rel=1e-12)


@given(side=st.integers(1, 12), sd=st.floats(0, 20))
def test_blurring_a_line_takes_nothing_away_and_adds_nothing(side: int, sd: float) -> None:
    table = blurring(side, sd)
    torch.testing.assert_close(table.sum(dim=0), torch.ones(side, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(table, table.T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3), (450, 1)])
def test_rotation_by_right_angles_is_rot90(degrees: float, turns: int) -> None:
    x = _images(4, 3, 9, 9)
    torch.testing.assert_close(SHIFTS["rotation"](x, degrees), x.rot90(turns, (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees", [10.0, -37.0, 200.0])
@pytest.mark.parametrize("shape", [(8, 8), (9, 14)])
def test_rotation_is_scipy_s(degrees: float, shape: tuple[int, int]) -> None:
    x = _images(2, 3, *shape)
    expected = ndimage.rotate(x.numpy(), degrees, (3, 2), reshape=False, order=1, mode="grid-constant")
    np.testing.assert_allclose(SHIFTS["rotation"](x, degrees), expected, atol=1e-10)


def test_noise_is_one_draw_scaled_and_normal() -> None:
    x = _images(50, 1, 20, 20)
    unit = (SHIFTS["noise"](x, 0.5) - x) / 0.5
    torch.testing.assert_close((SHIFTS["noise"](x, 2.0) - x) / 2, unit, rtol=0, atol=1e-12)
    n = unit.numel()
    assert abs(unit.mean().item()) < 4 / math.sqrt(n)
    assert abs(unit.var().item() - 1) < 4 * math.sqrt(2 / n)


def test_a_colour_cast_moves_red_and_blue_apart_and_leaves_the_mean() -> None:
    x = _images(4, 3, 5, 5)
    found = SHIFTS["colour"](x, 0.2)
    for channel, change in enumerate((0.2, 0.0, -0.2)):
        torch.testing.assert_close(found[:, channel], x[:, channel] + change, rtol=0, atol=1e-15)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_a_shift_of_priors_keeps_the_stated_counts_of_whole_examples(strength: float) -> None:
    classes = 5
    y = torch.arange(203) % classes
    split = Split(torch.arange(203.0)[:, None], y)
    found = shifted(split, "prior", strength, classes)
    before = [int((y == k).sum()) for k in range(classes)]
    wanted = [max(1, round(n * 10 ** (-strength * k / 4))) for k, n in enumerate(before)]
    assert [int((found.y == k).sum()) for k in range(classes)] == wanted == class_counts(before, strength)
    assert torch.equal(y[found.x[:, 0].long()], found.y)
    assert (found.x[1:] > found.x[:-1]).all()
    stronger = set(shifted(split, "prior", strength + 0.5, classes).x[:, 0].tolist())
    assert stronger < set(found.x[:, 0].tolist())


def test_a_third_of_a_turn_of_hue_puts_red_into_green() -> None:
    x = _images(4, 3, 8, 7)
    torch.testing.assert_close(SHIFTS["hue"](x, 120.0), x.roll(1, dims=1), rtol=0, atol=1e-15)
    torch.testing.assert_close(SHIFTS["hue"](x, -480.0), x.roll(2, dims=1), rtol=0, atol=1e-14)


def test_hue_turns_colours_by_rodrigues_formula_about_the_line_of_greys() -> None:
    x, axis, angle = _images(5, 3, 4, 4), np.ones(3) / 3**0.5, math.radians(47)
    found = SHIFTS["hue"](x, 47.0).numpy()
    for image, turned in zip(x.numpy(), found, strict=True):
        for before, after in zip(image.reshape(3, -1).T, turned.reshape(3, -1).T, strict=True):
            by_hand = math.cos(angle) * before + math.sin(angle) * np.cross(axis, before)
            by_hand = by_hand + (1 - math.cos(angle)) * axis * (axis @ before)
            np.testing.assert_allclose(after, by_hand, atol=1e-14)
    grey = _images(2, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(SHIFTS["hue"](grey, 200.0), grey, rtol=0, atol=1e-14)


# -- in a run --------------------------------------------------------------------------------------

STRENGTHS = {"brightness": 0.4, "contrast": 0.6, "blur": 1.0, "noise": 0.3, "rotation": 30, "colour": 0.2, "prior": 1}
STRENGTHS |= {"hue": 40}


def _data(spec: RunSpec) -> Dataset:
    return assemble(spec).dataset


@pytest.mark.parametrize("shift", sorted(STRENGTHS))
@pytest.mark.parametrize("data", ["digits", "tinted_digits", "mnist", "cifar10"])
def test_the_test_split_is_shifted_before_it_is_normalized_and_training_never(
    data: str, shift: str, spec_of: SpecOf, bits_of: Callable[[Any], Any]
) -> None:
    if shift in OF_COLOURS and data in ("digits", "mnist"):
        return
    given = (f"data={data}", "model.depth=1", "data.normalize=none")
    wanted = (f"data.shift={shift}", f"data.shift_strength={STRENGTHS[shift]}")
    raw, plain = _data(spec_of(*given)), _data(spec_of(*given[:2]))
    found, unnormalized = _data(spec_of(*given[:2], *wanted)), _data(spec_of(*given, *wanted))
    assert bits_of(found.train.x[:]) == bits_of(plain.train.x[:])
    assert bits_of(found.train.y) == bits_of(plain.train.y)
    assert isinstance(found.test, Images) == isinstance(plain.test, Images)
    by_hand = shifted(Split(raw.test.x[:], raw.test.y), shift, STRENGTHS[shift], 10)
    torch.testing.assert_close(unnormalized.test.x[:], by_hand.x, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.test.y, by_hand.y)
    x = raw.train.x[:].double()
    over = (0, 2, 3)
    mean, sd = x.mean(dim=over, keepdim=True), x.std(dim=over, keepdim=True, correction=0)
    torch.testing.assert_close(found.test.x[:].double(), (by_hand.x.double() - mean) / sd, rtol=1e-5, atol=1e-5)
    again = _data(spec_of(*given[:2], *wanted, "seed=7"))
    assert bits_of(again.test.x[:]) == bits_of(found.test.x[:])


def test_what_is_not_images_can_be_shifted_where_that_has_a_meaning(spec_of: SpecOf) -> None:
    given = ("data=gaussian_clusters", "data.shift_strength=1.5")
    plain = _data(spec_of("data=gaussian_clusters")).test
    bright = _data(spec_of(*given, "data.shift=brightness")).test
    assert torch.equal(bright.x, plain.x + 1.5)
    noisy = _data(spec_of(*given, "data.shift=noise")).test
    assert (noisy.x - plain.x).std().item() == pytest.approx(1.5, rel=0.05)
    fewer = _data(spec_of(*given, "data.shift=prior")).test
    assert torch.equal(fewer.y.bincount(), torch.tensor(class_counts(plain.y.bincount().tolist(), 1.5)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.shift_strength=0.5",), r"^data.shift_strength: there is no shift, got 0.5. Choose one in data.shift"),
        (("data.shift=blur",), r"^data.shift_strength: missing, and data.shift=blur needs one"),
        (("data.shift=blur", "data.shift_strength=-1"), r"^data.shift_strength: of blur must be at least 0, got -1"),
        (("data.shift=contrast", "data.shift_strength=2"), r"^data.shift_strength: of contrast must be at most 1"),
        (("data.shift=colour", "data.shift_strength=1"), r"^data.shift: needs colour images, and those of data=digits"),
        (
            ("data.shift=rotation", "data.shift_strength=1", "data=gaussian_clusters"),
            r"^data.shift: needs images, and data=gaussian_clusters has none, got 'rotation'. Use brightness, noise or",
        ),
        (
            ("data.shift=prior", "data.shift_strength=1", "data=linear_teacher", "loss=mse"),
            r"^data.shift: needs classes, and data=linear_teacher has none, got 'prior'. Use brightness or noise",
        ),
    ],
)
def test_a_shift_that_makes_no_sense_is_refused(overrides: tuple[str, ...], message: str, spec_of: SpecOf) -> None:
    with pytest.raises(UsageError, match=message):
        assemble(spec_of(*overrides))
