"""LSUV: every affine map's outputs have unit variance on the first batch, and weights are orthogonal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import twins

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.net.lsuv import scale_to_unit_variance
from bnlab.run.setup import assemble

SpecOf = Callable[..., RunSpec]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_outputs_have_the_variance_that_is_asked_for_on_the_first_batch(
    model: str, norm: str, scale: float, spec_of: SpecOf
) -> None:
    settings = ("model.init=lsuv", "dtype=float64", f"model.init_scale={scale}", f"norm={norm}")
    setup = assemble(spec_of(*settings, "model.bias=true", model=model))
    pres, _ = twins.forward(setup, setup.net.module.state_dict(), setup.batches.at(0).x)
    for pre in pres:
        assert twins.variance_of(pre.flatten().tolist()) == pytest.approx(scale**2, rel=1e-9)


def test_weights_are_those_of_orthogonal_up_to_a_factor_and_the_same_each_time(spec_of: SpecOf) -> None:
    nets = [assemble(spec_of(f"model.init={init}", "norm=none")).net for init in ("lsuv", "lsuv", "orthogonal")]
    for site, again, plain in zip(*(net.sites for net in nets), strict=True):
        w, same, other = (of.affine.get_parameter("weight").detach() for of in (site, again, plain))
        assert torch.equal(w, same)
        torch.testing.assert_close(w / w.norm(), other / other.norm())


def test_it_leaves_buffers_and_the_random_state_as_they_were(spec_of: SpecOf) -> None:
    setup = assemble(spec_of("norm=batch", "model.dropout=0.3"))
    before = {name: buffer.clone() for name, buffer in setup.net.module.named_buffers()}
    drawn = torch.get_rng_state()
    scale_to_unit_variance(setup.net, setup.batches.at(0).x)
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, buffer in setup.net.module.named_buffers():
        assert torch.equal(buffer, before[name])


def test_a_layer_without_variance_is_refused(spec_of: SpecOf) -> None:
    setup = assemble(spec_of("norm=none"))
    with torch.no_grad():
        setup.net.sites[0].affine.get_parameter("weight").zero_()
    with pytest.raises(UsageError, match=r"^model\.init: L00_fc has no variance on the first batch, got 'lsuv'"):
        scale_to_unit_variance(setup.net, setup.batches.at(0).x)
