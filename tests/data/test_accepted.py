"""What a user's data set may return: converted and said once, or refused in one line that names the split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.registry import DATA
from bnlab.core.spec import RunSpec
from bnlab.data._accepted import accepted
from bnlab.data.base import Dataset, Images, Split, normalized
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]
BYTES = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(40) % 4


def _made(x: Any, y: Any, classes: int | None = 4) -> Dataset:
    return Dataset(train=Split(x, y), test=Split(x[:20], y[:20]), classes=classes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 4, 4), (16,)])
def test_inputs_are_floats_before_they_are_normalized(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = BYTES.view(40, *shape).to(dtype)
    found = normalized(accepted(_made(x, LABELS), "mine"), "channel")
    values = BYTES.double().numpy()
    expected = (values - values.mean()) / values.std()
    for split, rows in ((found.train, 40), (found.test, 20)):
        inputs = split.to(torch.device("cpu"), torch.float32).pick(slice(None)).x
        assert inputs.dtype == torch.float32
        np.testing.assert_allclose(inputs.double().numpy().ravel(), expected[:rows].ravel(), atol=1e-6)


def test_booleans_become_0_and_1_and_arrays_tensors() -> None:
    found = accepted(_made((BYTES > 127).view(40, 16).numpy(), LABELS.numpy()), "mine")
    assert found.train.x.unique().tolist() == [0.0, 1.0]
    assert found.train.y.tolist() == LABELS.tolist()


def test_images_of_bytes_stay_bytes_with_values_from_0_to_1() -> None:
    found = accepted(_made(BYTES, LABELS), "mine")
    assert isinstance(found.train, Images)
    assert found.train.raw.dtype == torch.uint8
    torch.testing.assert_close(found.train.x, BYTES.float() / 255)
    assert found.notes == ("data=mine: images of bytes, 0 to 255, become values from 0 to 1",)


def test_what_needs_no_change_is_left_alone_and_nothing_is_said() -> None:
    x = BYTES.float()
    found = accepted(_made(x, LABELS), "mine")
    assert (found.train.x is x, found.train.y is LABELS, found.notes) == (True, True, ())


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_become_classes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    found = accepted(_made(BYTES.float(), LABELS.to(dtype).view(shape)), "mine")
    assert found.train.y.dtype == torch.int64
    assert found.train.y.tolist() == LABELS.tolist()
    assert len(found.notes) == ((dtype, shape) != (torch.int64, (40,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_targets_of_a_regression_become_values(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    found = accepted(_made(BYTES.float(), LABELS.to(dtype).view(shape), None), "mine")
    assert (found.outputs, found.train.y.dtype) == (1, torch.float32)
    assert found.train.y[:, 0].tolist() == LABELS.tolist()


def _with(x: Tensor, at: int | slice, value: float) -> Tensor:
    x = x.float().clone()
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "classes", "line"),
    [
        (
            _with(BYTES, slice(7, 9), math.nan),
            LABELS,
            4,
            "data=mine train: an input of 2 of 40 examples is not finite, first that of example 7. Leave such examples",
        ),
        (_with(BYTES, 9, math.inf), LABELS, 4, "data=mine train: an input of 1 of 40 examples is not finite, first th"),
        (BYTES, _with(LABELS, 3, math.nan), None, "data=mine train: a target of 1 of 40 examples is not finite, fir"),
        (
            BYTES,
            LABELS + 1,
            4,
            "data=mine train: its labels are 1 to 4, and must be 0 to 3. Count them from 0: y - 1.",
        ),
        (
            BYTES,
            LABELS,
            3,
            "data=mine train: its labels are 0 to 3, and must be 0 to 2. Change the labels",
        ),
        (BYTES, LABELS - 1, 4, "data=mine train: its labels are -1 to 2, and must be 0 to 3. "),
        (
            BYTES,
            LABELS.float(),
            4,
            "data=mine train: its labels must be integers, one for each example, got ",
        ),
        (BYTES, torch.eye(4).long()[LABELS], 4, "data=mine train: its labels must be integers, one for each example, "),
        (BYTES, LABELS[:30], 4, "data=mine train: needs inputs [N, C, H, W] or [N, D], and a target for each of N > 0"),
        (BYTES[:, 0, 0, 0], LABELS, 4, "data=mine train: needs inputs "),
        (BYTES[:0], LABELS[:0], 4, "data=mine train: needs inputs "),
    ],
)
def test_data_that_no_run_can_use_is_refused_at_set_up(
    x: Tensor, y: Tensor, classes: int | None, line: str, spec_of: SpecOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = "cross_entropy" if classes else "mse"
    made, spec = _made(x, y, classes), spec_of("norm=batch", "data.batch_size=8", "probes=none", f"loss={loss}")
    monkeypatch.setattr(DATA, "build", lambda name, options: made)
    with pytest.raises(UsageError) as refused:
        assemble(replace(spec, data=replace(spec.data, name="mine")))
    assert str(refused.value).startswith(line)
    good = Split(BYTES.float(), LABELS if classes else LABELS[:, None].float())
    with pytest.raises(UsageError) as refused:  # in the test split it is seen too
        accepted(Dataset(train=good, test=made.train, classes=classes), "mine")
    if classes != 3:
        assert str(refused.value).startswith(line.replace("train", "test"))


def test_what_is_no_data_set_and_splits_of_two_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^data=mine: must return a bnlab\.data\.base\.Dataset, got 'tuple'\.$"):
        accepted((BYTES, LABELS), "mine")
    made = Dataset(train=Split(BYTES, LABELS), test=Split(BYTES[..., :2], LABELS), classes=4)
    with pytest.raises(UsageError, match=r"^data=mine test: its examples have another shape than those of train, got"):
        accepted(made, "mine")


def test_a_constant_feature_in_float64_is_only_shifted() -> None:
    """Its mean is not quite itself, and the standard deviation is that rounding."""
    x = torch.randn(997, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 1] = 0.1
    made = Dataset(train=Split(x, torch.zeros(997, 1)), test=Split(x, torch.zeros(997, 1)), classes=None)
    assert float(normalized(made, "feature").train.x[:, 1].abs().max()) < 1e-12


PLUGIN = """
import torch
from bnlab import DATA
from bnlab.data.base import Dataset, Split

@DATA.register("bytes_of_mine")
def bytes_of_mine():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (200, 1, 8, 8), generator=g, dtype=torch.uint8), torch.arange(200).int()[:, None] % 3
    return Dataset(train=Split(x, y), test=Split(x, y), classes=3)
"""


def test_a_run_says_once_what_was_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from bnlab import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = "train --config deep_mlp plugins=[mine.py] data=bytes_of_mine data.batch_size=20 steps=2 --plain"
    done = CliRunner().invoke(cli.app, words.split())
    DATA.forget("bytes_of_mine")
    assert done.exit_code == 0, done.output
    assert done.output.count("data=bytes_of_mine: images of bytes, 0 to 255, become values from 0 to 1") == 1
    assert done.output.count("data=bytes_of_mine: targets of int32, [1] each, become int64") == 1
