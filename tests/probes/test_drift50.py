"""How far the median of every unit has moved over a run, against loops with numpy's percentiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab.core.spec import RunSpec
from bnlab.data.base import Split
from bnlab.net.build import Net, Site
from bnlab.net.wrap import Sites
from bnlab.probes.activations import Activations, percentiles, unit_percentiles
from bnlab.probes.base import Carry, Snapshot, figures
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=standard", "probes.activations.batch=22", "steps=5")
POINTS = ("pre", "act_in")


def _units(x: np.ndarray) -> list[np.ndarray]:
    """The values of every unit over the batch, of a convolution at the central position."""
    at = x if x.ndim == 2 else x[:, :, x.shape[2] // 2, x.shape[3] // 2]
    return [at[:, unit] for unit in range(at.shape[1])]


def _seen(net: nn.Module, run: Any) -> dict[str, list[np.ndarray]]:
    """pre and act_in of every site on the probe batch, by hooks."""
    noted: dict[str, Tensor] = {}
    for name, part in net.named_modules():
        part.register_forward_hook(lambda part, args, out, name=name: noted.update({name: out}))
    with torch.no_grad():
        net(run.setup.observer.probe_batch.x)
    names = [site.name for site in run.setup.net.sites]
    before = run.setup.spec.norm.position == "before"
    pre = [noted[f"{name}_affine"].numpy() for name in names]
    normed = [noted.get(f"{name}_norm") if before else None for name in names]
    act_in = [x if out is None else out.numpy() for x, out in zip(pre, normed, strict=True)]
    return {"pre": pre, "act_in": act_in}


@pytest.mark.parametrize("overrides", [("norm=none",), ("norm=batch",), ("norm=batch", "norm.position=after")], ids=str)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_it_is_the_range_of_the_medians_so_far_over_the_spread_now(
    model: str, overrides: tuple[str, ...], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, "dtype=float64", *overrides, model=model))
    seen = [_seen(run.moment(step).net(), run) for step in range(5)]
    assert not [key for key in run.records[0] if key.startswith("drift50")]
    for now in range(1, 5):
        for point in POINTS:
            expected = []
            for site in range(len(run.setup.net.sites)):
                distances = []
                for unit, values in enumerate(_units(seen[now][point][site])):
                    medians = [np.percentile(_units(seen[t][point][site])[unit], 50) for t in range(1, now + 1)]
                    spread = np.percentile(values, 85) - np.percentile(values, 15)
                    distances.append((max(medians) - min(medians)) / spread)
                expected.append(np.median(distances))
            np.testing.assert_allclose(run.records[now][f"drift50.{point}"], expected, rtol=1e-7, atol=1e-12)
            assert all(value > 0 for value in run.records[now][f"drift50.{point}"]) == (now > 1)


def _snapshots(medians: list[list[float]], widths: list[float]) -> list[Snapshot]:
    """One site, seen at several moments: unit u of moment t is spread uniformly from medians[t][u] - widths[t] to
    medians[t][u] + widths[t], so its 85th percentile is 1.4 widths[t] above its 15th."""
    units = len(medians[0])
    module = nn.Sequential(nn.Linear(units, units), nn.Identity())
    site = Site(name="L00_out", affine=module[0], norm=None, activation=module[1], norm_first=True, params=())
    grid = torch.linspace(-1, 1, 22, dtype=torch.float64)
    found = []
    for middle, width in zip(medians, widths, strict=True):
        x = torch.tensor(middle, dtype=torch.float64) + width * grid[:, None]
        found.append(
            Snapshot(
                step=len(found),
                point=None,
                lr=0.1,
                seed=0,
                net=Net(module=module, sites=(site,)),
                objective=lambda outputs, targets: outputs.sum(),
                batch=Split(x, x),
                probe=Sites([x], [x]),
            )
        )
    return found


def _followed(medians: list[list[float]], widths: list[float]) -> list[float | None]:
    probe = Activations(batch=22, unit=0, histogram_sites=0, histogram_every=1, drift50=True)
    carry: Carry = {}
    found: list[float | None] = []
    for snapshot in _snapshots(medians, widths):
        metrics, carry = figures(probe, snapshot, carry)
        found.append(float(metrics["drift50.pre"][0]) if "drift50.pre" in metrics else None)
    return found


def test_what_moves_there_and_back_has_moved() -> None:
    """The first moment does not count: from 1 to 5 and back is 4, and 3 for the other unit; at the end the spread is
    2.8."""
    first, second, third, last = _followed([[90, -70], [1, 2], [5, 2], [1, -1]], [1, 1, 1, 2])
    assert first is None
    assert second == 0.0
    assert third == pytest.approx((4 / 1.4 + 0 / 1.4) / 2)
    assert last == pytest.approx((4 / 2.8 + 3 / 2.8) / 2)


def test_a_constant_unit_that_never_moved_has_not_and_one_that_moved_has_no_figure() -> None:
    assert _followed([[0], [3], [3]], [0, 0, 0]) == [None, 0.0, 0.0]
    assert _followed([[0], [3], [4]], [0, 0, 0]) == [None, 0.0, math.inf]


def test_what_was_nan_once_shows(spec_of: SpecOf) -> None:
    found = _followed([[0], [3], [math.nan], [3]], [1, 1, 1, 1])
    assert found[:2] == [None, 0.0]
    assert np.isnan(found[2:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [4, 21, 22, 128])
def test_percentiles_on_the_device_are_those_of_numpy(batch: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, batch, 5, generator=torch.Generator().manual_seed(batch)).to(dtype)
    x[1, 2, 3] = math.nan
    found = unit_percentiles(x)
    assert found.dtype == dtype
    with np.errstate(invalid="ignore"):
        expected = np.quantile(x.double().numpy(), [0.15, 0.5, 0.85], axis=1).reshape(3, -1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    rows = percentiles(x.transpose(1, 2).reshape(15, batch).numpy(), [0.15, 0.5, 0.85])
    np.testing.assert_allclose(found.numpy(), np.stack(rows), rtol=1e-5 if dtype == torch.float32 else 1e-12)


def test_a_resumed_run_remembers_where_the_medians_have_been(spec_of: SpecOf, run: Any, tmp_path: Path) -> None:
    """The weights go far away at one step and come back at the next; the run is stopped after both."""

    def journal(where: str, stop: int | None) -> list[Any]:
        folder = RunFolder(tmp_path / where)
        step = -1
        setup = assemble(spec)
        weight = setup.net.sites[1].affine.get_parameter("weight")

        def moved() -> str | None:
            nonlocal step
            step += 1
            with torch.no_grad():
                weight.mul_({3: 10.0, 4: 0.1}.get(step, 1.0))
            return "a test" if step == stop else None

        if train(setup, folder, stopped=moved)["status"] == "interrupted":
            train(assemble(spec), folder)
        return [without_clock(record) for record in read(folder.journal_file)]

    spec = spec_of("probes=standard", "probes.activations.batch=24", "norm=none")
    whole, resumed = journal("whole", None), journal("resumed", 6)
    assert resumed == whole
    assert min(record["drift50.pre"][1] for record in whole[4:12]) > 3 * max(whole[2]["drift50.pre"][1], 0.1)
    assert "drift50.pre" in whole[11]


@pytest.mark.parametrize(("preset", "measured"), [("economy", False), ("standard", True), ("full", True)])
def test_presets_switch_it_on_as_documented(preset: str, measured: bool, spec_of: SpecOf) -> None:
    options = spec_of(f"probes={preset}").probes.options
    assert options["activations"]["drift50"] is measured
    assert options["gradients"]["cancellation"] is (preset == "full")
