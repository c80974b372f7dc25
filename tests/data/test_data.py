"""Data sets against their sources and closed forms; batches as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_digits

from bnlab import config
from bnlab.core.errors import UsageError
from bnlab.core.registry import DATA
from bnlab.core.spec import RunSpec
from bnlab.data.base import Augment, Batches, Dataset, Images, Split, first, normalized, probe_batch
from bnlab.run.setup import assemble

NAMES = list(config.available("data", [config.packaged_dir()]))
REGRESSIONS = ("diabetes", "linear_teacher")


def _digits(test_fraction: float = 0.2) -> Dataset:
    found: Dataset = DATA.build("digits", {"test_fraction": test_fraction})
    return found


def _clusters(**options: Any) -> Dataset:
    given_options = {"dimension": 6, "classes": 4, "separation": 5.0, "size": 20000, "test_size": 100, "data_seed": 0}
    found: Dataset = DATA.build("gaussian_clusters", given_options | options)
    return found


def _teacher(**options: Any) -> Dataset:
    given_options = {"dimension": 5, "size": 400, "test_size": 50, "data_seed": 0}
    found: Dataset = DATA.build("linear_teacher", given_options | options)
    return found


# -- every data set --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_finite_typed_and_the_same_every_time(
    name: str, spec_of: Callable[..., RunSpec], bits_of: Callable[[Any], Any]
) -> None:
    loss = "mse" if name in REGRESSIONS else "cross_entropy"
    spec = spec_of(f"data={name}", f"loss={loss}")
    dataset: Dataset = DATA.build(name, spec.data.options)
    torch.manual_seed(12345)
    again: Dataset = DATA.build(name, spec.data.options)
    for one, other in ((dataset.train, again.train), (dataset.test, again.test)):
        assert bits_of([one.x, one.y]) == bits_of([other.x, other.y])
        assert len(one) == len(one.x) == len(one.y)
        assert one.x.dtype == torch.float32
        assert bool(torch.isfinite(one.x).all())
        if dataset.classes is None:
            assert one.y.ndim == 2
            assert one.y.shape[1] == dataset.outputs
        else:
            assert one.y.dtype == torch.int64
            assert set(one.y.tolist()) == set(range(dataset.classes))
            assert dataset.outputs == dataset.classes
    assert dataset.input_shape == tuple(dataset.test.x.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_s_seed_moves_the_batches_and_not_the_data(
    name: str, spec_of: Callable[..., RunSpec], bits_of: Callable[[Any], Any]
) -> None:
    loss = "mse" if name in REGRESSIONS else "cross_entropy"
    setups = [assemble(spec_of(f"data={name}", f"loss={loss}", f"seed={seed}")) for seed in (0, 1)]
    one, other = ([s.dataset.train.x, s.dataset.train.y, s.dataset.test.x, s.dataset.test.y] for s in setups)
    assert bits_of(one) == bits_of(other)
    assert not torch.equal(setups[0].batches.at(0).x, setups[1].batches.at(0).x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_and_values_take_the_run_s_dtype_and_classes_stay_classes(
    name: str, dtype: torch.dtype, spec_of: Callable[..., RunSpec]
) -> None:
    loss = "mse" if name in REGRESSIONS else "cross_entropy"
    options = spec_of(f"data={name}", f"loss={loss}").data.options
    dataset = DATA.build(name, options).to(torch.device("cpu"), dtype)
    for split in (dataset.train, dataset.test):
        assert split.x.dtype == dtype
        assert split.y.dtype == (torch.int64 if dataset.classes else dtype)


# -- digits ----------------------------------------------------------------------------------------


def _rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted((*image, float(label)) for image, label in zip(x.flatten(1).tolist(), y.tolist(), strict=True))


def test_digits_are_scikit_learn_s_own() -> None:
    bunch = load_digits()
    expected = _rows(torch.from_numpy(bunch.images / 16), torch.from_numpy(bunch.target))
    dataset = _digits()
    both = [torch.cat([getattr(dataset.train, part), getattr(dataset.test, part)]) for part in ("x", "y")]
    assert _rows(*both) == expected
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.classes == 10


def test_digits_keep_the_pixels_of_an_image_in_their_places() -> None:
    """Sorting rows would not see transposed images: the first training image is one of scikit-learn's as it stands."""
    bunch = load_digits()
    image = _digits().train.x[0, 0].numpy() * 16
    assert any(np.array_equal(image, other) for other in bunch.images)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_test_split_of_digits_takes_its_share_of_every_class(fraction: float) -> None:
    dataset = _digits(fraction)
    totals = np.bincount(load_digits().target)
    tests = torch.bincount(dataset.test.y).numpy()
    trains = torch.bincount(dataset.train.y).numpy()
    np.testing.assert_array_equal(tests, [round(total * fraction) for total in totals.tolist()])
    np.testing.assert_array_equal(tests + trains, totals)


def test_the_splits_of_digits_do_not_overlap() -> None:
    """All 1,797 images of scikit-learn differ, so a shared one would be seen."""
    dataset = _digits()
    train = {tuple(image) for image in dataset.train.x.flatten(1).tolist()}
    test = {tuple(image) for image in dataset.test.x.flatten(1).tolist()}
    assert len(train) + len(test) == 1797
    assert not train & test


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2])
def test_a_test_split_of_nothing_or_everything_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^data\.test_fraction: must be (a number above 0|below 1), got "):
        _digits(fraction)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_tables_are_read_also_where_scikit_learn_keeps_them_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch, bits_of: Callable[[Any], Any]
) -> None:
    made = {"digits": _digits, "diabetes": _diabetes}[name]
    direct = made()
    monkeypatch.setattr("bnlab.data._shipped.Path.is_file", lambda self: False)
    loaded = made()
    assert bits_of([direct.train.x, direct.test.y]) == bits_of([loaded.train.x, loaded.test.y])


# -- tinted digits ---------------------------------------------------------------------------------


def test_tinted_digits_are_the_digits_in_one_ink(bits_of: Callable[[Any], Any]) -> None:
    found: Dataset = DATA.build("tinted_digits", {"test_fraction": 0.2, "tint": [1.0, 0.5, 0.0]})
    grey = _digits()
    for one, other in ((found.train, grey.train), (found.test, grey.test)):
        expected = torch.cat([other.x, 0.5 * other.x, 0 * other.x], dim=1)
        assert bits_of([one.x, one.y]) == bits_of([expected, other.y])
    assert (found.classes, found.input_shape) == (10, (3, 8, 8))


@pytest.mark.parametrize(
    ("tint", "must"),
    [
        ([1.0, 0.5], "have at least 3 values"),
        ([1.0, 0.5, 0.5, 1.0], "have at most 3 values"),
        ([1.0, 0.5, 1.5], "be at most 1"),
    ],
)
def test_a_tint_that_is_no_colour_is_refused(tint: list[float], must: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.tint: must {must}"):
        DATA.build("tinted_digits", {"test_fraction": 0.2, "tint": tint})


# -- diabetes --------------------------------------------------------------------------------------


def _diabetes(**options: Any) -> Dataset:
    given_options = {"test_fraction": 0.3, "by": "bmi", "train": "all", "test": "all", "data_seed": 0}
    found: Dataset = DATA.build("diabetes", given_options | options)
    return found


def test_patients_are_scikit_learn_s_own_with_standardized_targets() -> None:
    bunch = load_diabetes(scaled=False)
    target = (bunch.target - bunch.target.mean()) / bunch.target.std()
    expected = np.column_stack([bunch.data, target])
    found = _diabetes()
    assert (len(found.train), len(found.test), found.classes) == (310, 132, None)
    rows = np.concatenate([torch.cat([split.x, split.y], dim=1).numpy() for split in (found.train, found.test)])
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("by", "column"), [("bmi", 2), ("s5", 8)])
def test_patients_are_halved_by_a_measurement_and_both_splits_of_a_half_are_of_it(by: str, column: int) -> None:
    median = float(np.median(load_diabetes(scaled=False).data[:, column]))
    whole = _diabetes(by=by)
    halves = {name: _diabetes(by=by, train=name, test=name) for name in ("low", "high")}
    for split, count in (("train", 155), ("test", 66)):
        low, high = (getattr(halves[name], split).x for name in ("low", "high"))
        assert (len(low), len(high)) == (count, count)
        assert float(low[:, column].max()) <= np.float32(median) <= float(high[:, column].min())
        both = torch.cat([low, high]).tolist()
        assert sorted(both) == sorted(getattr(whole, split).x.tolist())


def test_where_a_net_is_tested_does_not_change_what_it_is_trained_on(bits_of: Callable[[Any], Any]) -> None:
    home, away = _diabetes(train="high", test="high"), _diabetes(train="high", test="low")
    assert bits_of([home.train.x, home.train.y]) == bits_of([away.train.x, away.train.y])
    assert bits_of([away.test.x]) == bits_of([_diabetes(train="low", test="low").test.x])


def test_another_data_seed_is_another_split_of_the_same_patients() -> None:
    one, other = _diabetes(train="low", test="low"), _diabetes(train="low", test="low", data_seed=1)
    assert sorted(one.test.x.tolist()) != sorted(other.test.x.tolist())
    whole = [sorted(torch.cat([found.train.x, found.test.x])[:, 2].tolist()) for found in (one, other)]
    assert whole[0] == whole[1]  # ties at the median may go to either half


# -- gaussian clusters -----------------------------------------------------------------------------


@pytest.mark.parametrize("separation", [0.0, 2.0, 8.0])
def test_two_cluster_centres_lie_separation_apart_on_average(separation: float) -> None:
    """Root mean square over pairs of centres, over 100 drawn data sets of 6 pairs each."""
    squares = []
    for data_seed in range(100):
        dataset = _clusters(separation=separation, size=2000, classes=4, dimension=6, data_seed=data_seed)
        centres = torch.stack([dataset.train.x[dataset.train.y == k].mean(dim=0) for k in range(4)]).double()
        squares += [float((centres[i] - centres[j]).pow(2).sum()) for i in range(4) for j in range(i)]
    # The mean of about 500 draws misses its centre by 1/500 in each of 6 coordinates; two means add up.
    noise = 2 * 6 / 500
    assert np.mean(squares) - noise == pytest.approx(separation**2, rel=0.1, abs=0.01)


def test_a_cluster_is_an_isotropic_unit_gaussian_around_its_centre() -> None:
    dataset = _clusters()
    for k in range(4):
        of_class = dataset.train.x[dataset.train.y == k].double()
        covariance = torch.cov(of_class.T)
        # 36 entries, each with a standard error of at most sqrt(2 / 5000) = 0.02.
        torch.testing.assert_close(covariance, torch.eye(6, dtype=torch.float64), rtol=0, atol=0.1)
        z = of_class - of_class.mean(dim=0)
        kurtosis = float((z**4).mean() / (z**2).mean() ** 2)
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / z.numel()))


def test_classes_of_gaussian_clusters_are_equally_likely_and_shared_by_both_splits() -> None:
    dataset = _clusters(test_size=20000)
    for split in (dataset.train, dataset.test):
        shares = torch.bincount(split.y, minlength=4).double() / len(split)
        assert (shares - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 20000)
    for k in range(4):
        centres = [split.x[split.y == k].mean(dim=0) for split in (dataset.train, dataset.test)]
        assert (centres[0] - centres[1]).abs().max() < 5 * math.sqrt(2 / 5000)


def test_another_data_seed_is_another_data_set() -> None:
    assert not torch.equal(_clusters().train.x, _clusters(data_seed=1).train.x)
    assert not torch.equal(_teacher().train.x, _teacher(data_seed=1).train.x)


# -- linear teacher --------------------------------------------------------------------------------


def test_a_linear_teacher_is_recovered_exactly_by_least_squares() -> None:
    dataset = _teacher()
    x, y = dataset.train.x.double().numpy(), dataset.train.y.double().numpy()
    solution, residuals, rank, _ = np.linalg.lstsq(x, y, rcond=None)  # y = x A^T
    assert rank == 5
    assert residuals.max() < 1e-9
    np.testing.assert_allclose(
        dataset.test.x.double().numpy() @ solution, dataset.test.y.double().numpy(), rtol=1e-5, atol=1e-5
    )


def test_a_linear_teacher_and_its_inputs_have_standard_normal_entries() -> None:
    dataset = _teacher(dimension=40, size=4000)
    x = dataset.train.x.double()
    assert abs(float(x.mean())) < 5 / math.sqrt(x.numel())
    assert float(x.var()) == pytest.approx(1, rel=5 * math.sqrt(2 / x.numel()))
    teacher = torch.linalg.lstsq(x, dataset.train.y.double()).solution
    assert abs(float(teacher.mean())) < 5 / math.sqrt(teacher.numel())
    assert float(teacher.var()) == pytest.approx(1, rel=5 * math.sqrt(2 / teacher.numel()))


# -- subsets ---------------------------------------------------------------------------------------


def _labelled(labels: list[int], classes: int | None) -> Dataset:
    """Training example i has x = i; as many targets as labels. The test split has one example."""
    y = torch.tensor(labels)
    split = Split(torch.arange(len(labels), dtype=torch.float32)[:, None], y if classes else y[:, None].float())
    return Dataset(train=split, test=Split(split.x[:1], split.y[:1]), classes=classes)


def _by_hand(labels: list[int], count: int) -> list[int]:
    """One example after the other: always the next of the class that has given fewest, of two such the one whose next
    example comes first."""
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(labels)) if i not in chosen]
        given_by = [sum(labels[i] == labels[j] for j in chosen) for i in left]
        chosen.append(left[given_by.index(min(given_by))])
    return sorted(chosen)


@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=25), count=st.integers(4, 25))
def test_a_subset_takes_of_each_class_alike_in_the_order_of_the_data(labels: list[int], count: int) -> None:
    if count > len(labels):
        return
    dataset = _labelled(labels, classes=4)
    found = first(dataset, count)
    assert found.train.x[:, 0].long().tolist() == _by_hand(labels, count)
    assert found.train.y.tolist() == [labels[i] for i in _by_hand(labels, count)]
    assert found.test is dataset.test
    assert found.classes == 4


def test_a_subset_of_a_regression_is_its_first_examples() -> None:
    assert first(_labelled([5] * 9, classes=None), 3).train.x[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("count", "per_class"), [(500, {50}), (505, {50, 51}), (10, {1})])
def test_a_subset_of_digits_is_balanced(count: int, per_class: set[int]) -> None:
    found = torch.bincount(first(_digits(), count).train.y, minlength=10)
    assert set(found.tolist()) == per_class
    assert int(found.sum()) == count


def test_a_subset_of_all_or_of_null_is_the_whole() -> None:
    dataset = _labelled([0, 1, 1, 0, 1], classes=2)
    assert first(dataset, None) is dataset
    assert first(dataset, 5).train.x[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (6, r"^data\.subset: larger than the 5 training examples, got 6\. Use a smaller one\.$"),
        (1, r"^data\.subset: fewer than the 2 classes, got 1\. Use a larger one\.$"),
    ],
)
def test_a_subset_larger_than_the_data_or_with_fewer_examples_than_classes_is_refused(count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        first(_labelled([0, 1, 1, 0, 1], classes=2), count)


# -- normalization ---------------------------------------------------------------------------------


def _shifted(shape: tuple[int, ...]) -> Dataset:
    """Training and test inputs with different moments, so that using the wrong ones shows."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.5, 3, math.prod(shape)).reshape(shape)
    train = torch.randn(200, *shape, generator=generator) * scale + 4
    test = torch.randn(50, *shape, generator=generator) * 7 - 3
    y = torch.zeros(200, dtype=torch.int64)
    return Dataset(train=Split(train, y), test=Split(test, y[:50]), classes=2)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
@pytest.mark.parametrize("how", ["channel", "feature"])
def test_inputs_are_normalized_by_the_training_split_alone(shape: tuple[int, ...], how: Any) -> None:
    dataset = _shifted(shape)
    found = normalized(dataset, how)
    train, test = dataset.train.x.double().numpy(), dataset.test.x.double().numpy()
    axes = (0,) if how == "feature" else (0, 2, 3) if len(shape) == 3 else (0, 1)
    mean, sd = train.mean(axis=axes, keepdims=True), train.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(found.train.x.numpy(), (train - mean) / sd, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.test.x.numpy(), (test - mean) / sd, rtol=1e-5, atol=1e-6)
    moments = found.train.x.double()
    assert float(moments.mean()) == pytest.approx(0, abs=1e-6)
    assert float(moments.var(correction=0)) == pytest.approx(1, abs=1e-6)
    assert found.train.y is dataset.train.y


def test_normalize_none_changes_nothing() -> None:
    dataset = _shifted((6,))
    assert normalized(dataset, "none") is dataset


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_a_constant_feature_is_only_shifted(constant: float) -> None:
    """Also one whose mean in floating point is not quite the constant: its rounding error is no standard deviation."""
    dataset = _shifted((6,))
    for split in (dataset.train, dataset.test):
        split.x[:, 2] = constant
    dataset.test.x[0, 2] = constant + 0.5
    found = normalized(dataset, "feature")
    expected = torch.zeros(50)
    expected[0] = float(dataset.test.x[0, 2]) - float(dataset.train.x[0, 2])
    torch.testing.assert_close(found.train.x[:, 2], torch.zeros(200), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.test.x[:, 2], expected, rtol=1e-6, atol=1e-6)


# -- batches ---------------------------------------------------------------------------------------


def _numbered(count: int) -> Split:
    """Example i has x = i and y = i: a batch tells which examples it holds."""
    return Split(torch.arange(count, dtype=torch.float32)[:, None], torch.arange(count))


@given(count=st.integers(1, 60), size=st.integers(1, 60), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation_cut_into_whole_batches(count: int, size: int, seed: int) -> None:
    if size > count:
        return
    batches = Batches(_numbered(count), size, seed)
    assert batches.per_epoch == count // size
    orders = []
    for epoch in range(3):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        seen = [batches.at(step) for step in steps]
        assert all(len(batch) == size for batch in seen)
        assert all(torch.equal(batch.x[:, 0].long(), batch.y) for batch in seen)
        order = [label for batch in seen for label in batch.y.tolist()]
        assert len(set(order)) == len(order) == batches.per_epoch * size
        orders.append(order)
    if count > 20 and size < count:
        assert orders[0] != orders[1] != orders[2]


@given(count=st.integers(21, 60), size=st.integers(1, 20), seed=st.integers(0, 5))
def test_shuffled_once_every_epoch_has_the_batches_of_the_first(count: int, size: int, seed: int) -> None:
    once, fresh = (Batches(_numbered(count), size, seed, shuffle=how) for how in ("once", "every_epoch"))
    first = [fresh.at(step).y.tolist() for step in range(fresh.per_epoch)]
    for epoch in (2, 0, 1):  # whatever came before
        steps = range(epoch * once.per_epoch, (epoch + 1) * once.per_epoch)
        assert [once.at(step).y.tolist() for step in steps] == first


def test_shuffled_once_images_are_still_augmented_anew_in_every_epoch() -> None:
    images = Images(torch.arange(640).to(torch.uint8).view(10, 1, 8, 8), torch.arange(10))
    batches = Batches(images, 5, 0, Augment(crop=2, flip=True), "once")
    assert torch.equal(batches.at(0).y, batches.at(2).y)
    assert not torch.equal(batches.at(0).x, batches.at(2).x)


@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_batch_depends_on_its_step_and_not_on_the_steps_requested_before(steps: list[int]) -> None:
    shared = Batches(_numbered(37), 5, 3)
    for step in steps:
        assert torch.equal(shared.at(step).y, Batches(_numbered(37), 5, 3).at(step).y)


def test_over_many_epochs_each_example_is_left_out_equally_often() -> None:
    """37 examples in batches of 5 leave 2 out of each epoch; over 1,000 epochs each 54 times, give or take 7."""
    batches = Batches(_numbered(37), 5, 0)
    counts = torch.zeros(37)
    for step in range(1000 * batches.per_epoch):
        counts[batches.at(step).y] += 1
    left_out = 1000 - counts
    assert left_out.sum() == 2000
    assert (left_out - 2000 / 37).abs().max() < 5 * math.sqrt(2000 / 37)


@pytest.mark.parametrize("size", ["full", 37])
def test_a_full_batch_is_all_examples_in_their_own_order(size: Any) -> None:
    batches = Batches(_numbered(37), size, 0)
    assert batches.per_epoch == 1
    for step in (0, 1, 99):
        assert batches.at(step).y.tolist() == list(range(37))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    message = r"^data\.batch_size: larger than the 37 training examples, got 38\. Use a smaller one, or full\.$"
    with pytest.raises(ValueError, match=message):
        Batches(_numbered(37), 38, 0)


def test_a_probe_batch_is_a_fixed_choice_without_repetition() -> None:
    batch = probe_batch(_numbered(200), 64, 0)
    assert len(set(batch.y.tolist())) == 64
    assert torch.equal(batch.y, probe_batch(_numbered(200), 64, 0).y)
    assert not torch.equal(batch.y, probe_batch(_numbered(200), 64, 1).y)
    assert torch.equal(batch.x[:, 0].long(), batch.y)
    # 64 of 200 without preference: their mean is 99.5 with a standard deviation of 57.7 / 8 * sqrt(136 / 199).
    assert abs(float(batch.y.double().mean()) - 99.5) < 5 * 57.7 / 8 * math.sqrt(136 / 199)
