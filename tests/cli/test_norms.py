"""`bnlab runs RUN --norms`: what the norms of a checkpoint have, channel by channel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab.cli import main
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run.setup import assemble
from bnlab.run.train import train

SpecOf = Callable[..., RunSpec]
Capture = pytest.CaptureFixture[str]


def trained(folder: Path, spec: RunSpec) -> Path:
    train(assemble(spec), RunFolder(folder))
    return folder


def said(capture: Capture, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capture.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


SMALL = ("model.depth=2", "model.width=6", "steps=20", "probes=none", "probes.eval_points=1")


@pytest.mark.parametrize(
    ("norm", "learned", "computed"),
    [("batch", ["gamma", "beta"], ["running mean", "running variance"]), ("layer", ["gamma", "beta"], [])],
)
def test_every_channel_is_that_of_the_checkpoint(
    norm: str, learned: list[str], computed: list[str], tmp_path: Path, spec_of: SpecOf, capsys: Capture
) -> None:
    run = trained(tmp_path / "run", spec_of(f"norm={norm}", *SMALL))
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    code, out, _ = said(capsys, "runs", run, "--norms", "--json")
    found = json.loads(out)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["module"]
    assert (code, found["norm"], found["step"], len(found["sites"])) == (0, norm, 20, 2)
    named = {"gamma": "weight", "beta": "bias", "running mean": "running_mean", "running variance": "running_var"}
    norms = sorted({name.rpartition(".")[0] for name in saved if name.endswith(".norm.weight") or "norm" in name})
    assert len(norms) == 2
    for site, prefix in zip(found["sites"], norms, strict=True):
        assert [part["name"] for part in site["tensors"] if part["learned"]] == learned
        assert [part["name"] for part in site["tensors"] if not part["learned"]] == computed
        assert site["parameters"] == 12
        for part in site["tensors"]:
            values = saved[f"{prefix}.{named[part['name']]}"].double().numpy()
            assert part["values"] == values.tolist()
            expected = [6, values.mean(), values.std(), values.min(), values.max()]
            np.testing.assert_allclose([part[key] for key in ("channels", "mean", "sd", "min", "max")], expected)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_the_table_says_what_is_learned(tmp_path: Path, spec_of: SpecOf, capsys: Capture) -> None:
    run = trained(tmp_path / "run", spec_of(*SMALL))
    code, out, _ = said(capsys, "runs", run, "--norms")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["site", "channels", "mean", "sd", "min", "max"]
    assert [line.split()[-1] for line in lines[2:-1]] == ["learned", "learned", "computed", "computed"] * 2
    assert lines[-1] == "norm=batch at step 20: 24 of the net's 514 parameters"


def test_a_net_without_norms_has_a_line(tmp_path: Path, spec_of: SpecOf, capsys: Capture) -> None:
    run = trained(tmp_path / "run", spec_of("norm=none", *SMALL))
    _, out, _ = said(capsys, "runs", run, "--norms")
    assert out == "norm=none at step 20: 0 of the net's 502 parameters\n"


def test_more_than_one_run_and_a_run_without_a_checkpoint_are_refused(
    tmp_path: Path, spec_of: SpecOf, capsys: Capture
) -> None:
    run = trained(tmp_path / "run", spec_of(*SMALL))
    code, _, err = said(capsys, "runs", tmp_path, "--norms")
    assert (code, err.startswith("--norms: is of one run, got ")) == (2, True)
    assert said(capsys, "runs", run, "--norms", "--where", "norm=batch")[0] == 2
    (run / "checkpoint.pt").unlink()
    code, _, err = said(capsys, "runs", run, "--norms")
    assert (code, err.startswith("--norms: this run has no checkpoint, got ")) == (2, True)
