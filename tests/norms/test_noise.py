"""The noise of noisy_batch and noisy_none: its law, its streams, a resumed run, a measured run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.norms.base import Noise
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

PAPER = {"n_mu": 0.5, "n_sigma": 1.25, "r_mu": 0.1, "r_sigma": 0.1}
BATCH = {"eps": 1e-5, "momentum": 0.1, "affine": True}
NOISY = ("noisy_batch", "noisy_none")


def _norm(name: str, channels: int = 4, dims: int = 0, seed: int = 0, site: str = "L00_fc", **options: Any) -> Any:
    given = PAPER | (BATCH if name == "noisy_batch" else {}) | options
    norm = NORMS.build(name, given, channels, dims)
    norm.bind(seed, site)
    return norm


def _draws(steps: int, shape: tuple[int, ...], **options: float) -> tuple[Tensor, Tensor]:
    """s and m of many steps, each [T, *shape]."""
    noise = Noise(**(PAPER | options))
    noise.bind(3, "L00_fc")
    made = []
    for step in range(steps):
        noise.steps.fill_(step)
        made.append(noise.draw(torch.Size(shape)))
    return torch.stack([scale for scale, _ in made]).double(), torch.stack([shift for _, shift in made]).double()


def _close(found: Tensor, expected: float, error: float) -> None:
    """Within five standard errors."""
    assert abs(float(found) - expected) < 5 * error


# -- the law ---------------------------------------------------------------------------------------


def test_what_the_channels_draw_has_the_paper_s_law() -> None:
    """With r_mu = r_sigma = 0 the elements of a channel share mu ~ U(-1/2, 1/2) and sigma ~ U(1, 5/4)."""
    scale, shift = _draws(2000, (2, 5), r_mu=0.0, r_sigma=0.0)
    assert torch.equal(scale[:, 0], scale[:, 1])
    assert torch.equal(shift[:, 0], shift[:, 1])
    for drawn, low, high in ((shift[:, 0], -0.5, 0.5), (scale[:, 0], 1.0, 1.25)):
        n, width = drawn.numel(), high - low
        assert low <= float(drawn.min()) < low + 0.01 * width
        assert high - 0.01 * width < float(drawn.max()) <= high
        sd = width / math.sqrt(12)
        _close(drawn.mean(), (low + high) / 2, sd / math.sqrt(n))
        _close(drawn.var(), sd**2, sd**2 * math.sqrt((1.8 - 1) / n))  # the fourth moment of a uniform is 1.8 sd^4
        for lag in (1, 2):  # steps are independent of each other
            correlation = torch.corrcoef(torch.stack([drawn[lag:].flatten(), drawn[:-lag].flatten()]))[0, 1]
            _close(correlation, 0.0, 1 / math.sqrt(n))
        for channel in range(1, 5):  # and so are channels
            correlation = torch.corrcoef(torch.stack([drawn[:, 0], drawn[:, channel]]))[0, 1]
            _close(correlation, 0.0, 1 / math.sqrt(len(drawn)))
    _close(torch.corrcoef(torch.stack([scale[:, 0].flatten(), shift[:, 0].flatten()]))[0, 1], 0.0, 1 / math.sqrt(n))


def test_what_the_elements_draw_has_the_paper_s_law() -> None:
    """m ~ U(mu - 0.1, mu + 0.1) and s ~ N(sigma, 0.1^2) about their channel's own, which a twin without them shows."""
    size = 400
    scale, shift = _draws(40, (size, 5))
    sigma, mu = _draws(40, (size, 5), r_mu=0.0, r_sigma=0.0)
    m, s = shift - mu, scale - sigma
    n = m.numel()
    assert 0.0999 < float(m.abs().max()) <= 0.1 + 1e-6
    _close(m.mean(), 0.0, 0.1 / math.sqrt(3 * n))
    _close(m.var(), 0.01 / 3, 0.01 / 3 * math.sqrt(0.8 / n))
    _close(s.mean(), 0.0, 0.1 / math.sqrt(n))
    _close(s.var(), 0.01, 0.01 * math.sqrt(2 / n))
    _close((s / 0.1).pow(4).mean(), 3.0, math.sqrt(96 / n))  # a Gaussian's kurtosis
    _close(torch.corrcoef(torch.stack([m.flatten(), s.flatten()]))[0, 1], 0.0, 1 / math.sqrt(n))


def test_of_a_convolution_space_counts_as_batch() -> None:
    scale, shift = _draws(1, (3, 5, 4, 2), r_mu=0.0, r_sigma=0.0)
    for drawn in (scale[0], shift[0]):
        assert torch.equal(drawn, drawn[:1, :, :1, :1].expand_as(drawn))
        assert len(drawn[0, :, 0, 0].unique()) == 5
    spread = _draws(1, (3, 5, 4, 2))[0][0]
    assert len(spread.unique()) == spread.numel()


def test_a_channel_s_mu_and_sigma_do_not_depend_on_the_size_of_the_batch() -> None:
    one, other = (_draws(1, (size, 5), r_mu=0.0, r_sigma=0.0) for size in (2, 7))
    assert torch.equal(one[0][0, 0], other[0][0, 0])
    assert torch.equal(one[1][0, 0], other[1][0, 0])


# -- where it stands -------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [0, 2])
def test_noisy_batch_is_batch_norm_times_s_plus_m(dims: int) -> None:
    norm = _norm("noisy_batch", dims=dims).double()
    batch_norm = (nn.BatchNorm2d if dims else nn.BatchNorm1d)(4).double()
    twin = _norm("noisy_none", dims=dims)
    for step in range(3):
        shape = (6, 4, 3, 2) if dims else (6, 4)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        scale, shift = twin.draw(x.shape)
        expected = scale.double() * batch_norm(x) + shift.double()
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(twin(x), scale.double() * x + shift.double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.eval()(x), batch_norm.eval()(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(twin.eval()(x), x)
    assert int(norm.noise.steps) == int(twin.steps) == 3


def test_without_width_the_noise_is_none() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    quiet = _norm("noisy_batch", n_mu=0.0, n_sigma=1.0, r_mu=0.0, r_sigma=0.0)
    assert torch.equal(quiet(x), nn.BatchNorm1d(4)(x))


def test_seed_layer_and_step_choose_the_noise_and_nothing_else() -> None:
    x = torch.ones(3, 4)
    torch.manual_seed(1)
    first = _norm("noisy_none")(x)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    norm = _norm("noisy_none")
    assert torch.equal(norm(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(norm(x), first)
    assert not torch.equal(_norm("noisy_none", seed=1)(x), first)
    assert not torch.equal(_norm("noisy_none", site="L01_fc")(x), first)


def test_the_net_tells_each_layer_its_seed_and_site(spec_of: Callable[..., RunSpec]) -> None:
    for name in NOISY:
        setup = assemble(spec_of(f"norm={name}", "seed=5"))
        x = torch.ones(3, 6)
        for site in setup.net.sites[:-1]:
            noise = getattr(site.norm, "noise", site.norm)
            assert torch.equal(noise(x), _norm("noisy_none", seed=5, site=site.name)(x))


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("name", NOISY)
def test_a_run_resumes_bit_for_bit(
    name: str,
    model: str,
    tmp_path: Path,
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    state_bits: Callable[[Setup], Any],
) -> None:
    spec = spec_of(f"norm={name}", "probes=full", "probes.activations.batch=24", model=model)
    whole = run(spec, "whole")
    folder = RunFolder(tmp_path / "cut")
    for steps in (1, 4, 2):
        torch.manual_seed(steps)
        asked = iter([None] * steps + ["a test"])
        assert train(assemble(spec), folder, stopped=lambda asked=asked: next(asked))["status"] == "interrupted"
    setup = assemble(spec)
    assert train(setup, folder)["status"] == "finished"
    assert state_bits(setup) == state_bits(whole.setup)
    assert [without_clock(record) for record in read(folder.journal_file)] == whole.clockless


@pytest.mark.parametrize("name", NOISY)
def test_measuring_leaves_the_noise_where_it_was(
    name: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any], state_bits: Callable[[Setup], Any]
) -> None:
    measured = run(spec_of(f"norm={name}", "probes=full", "probes.activations.batch=24"), "full")
    bare = run(spec_of(f"norm={name}", "probes=none", "probes.points=1", "probes.eval_points=1"), "none")
    assert state_bits(measured.setup) == state_bits(bare.setup)
    steps = [int(value) for key, value in measured.setup.net.module.named_buffers() if key.endswith("steps")]
    assert steps == [12, 12]


def test_noise_changes_the_run_and_noise_without_width_does_not(
    spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    losses = {
        where: [record["train_loss"] for record in run(spec_of(*overrides), where).records if "train_loss" in record]
        for where, overrides in {
            "batch": ("norm=batch",),
            "noisy": ("norm=noisy_batch",),
            "quiet": ("norm=noisy_batch", "norm.n_mu=0", "norm.n_sigma=1", "norm.r_mu=0", "norm.r_sigma=0"),
        }.items()
    }
    assert losses["quiet"] == losses["batch"]
    assert losses["noisy"][0] != losses["batch"][0]


def test_a_copy_draws_the_same_numbers_as_the_original() -> None:
    norm = _norm("noisy_batch")
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    norm(x)
    assert torch.equal(copy.deepcopy(norm)(x), norm(x))


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mu": -0.5}, r"^norm\.n_mu: must be at least 0, got -0\.5\."),
        ({"n_sigma": 0.5}, r"^norm\.n_sigma: must be at least 1, got 0\.5\."),
        ({"r_sigma": -1}, r"^norm\.r_sigma: must be at least 0, got -1\."),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _norm(name, **options)
