"""The callback in a real Trainer: the same weights, and the measurements of `watch` in a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_nets import ResNet, images, plain_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnlab
from bnlab.record.folder import RunFolder
from bnlab.record.runs import Run, read_run

pl = pytest.importorskip("lightning.pytorch", reason="the extra lightning is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the library
    pytest.mark.filterwarnings("error::bnlab.loop.watch.MeasuringWarning"),
]
STEPS, RATE = 12, 0.05
PROBES = ["economy", "probes.points=12", "probes.activations.every=1"]


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return images(), torch.randint(0, 10, (96,))


def module_of(net: nn.Module, path: str = "net") -> Any:
    class Mine(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, path, net)
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, path)(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            return self.criterion(self(x), y)

        def validation_step(self, batch: Any, index: int) -> None:
            x, y = batch
            self.log("val_acc", (self(x).argmax(1) == y).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

    return Mine()


def fitted(net: nn.Module, root: Path, *callbacks: Any, **options: Any) -> nn.Module:
    x, y = data()
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(x, y), 24)
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module_of(net), loader, DataLoader(TensorDataset(x, y), 48))
    return net


def made(kind: type[nn.Module] | Any = ResNet) -> nn.Module:
    torch.manual_seed(2)
    return kind()


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}])
def test_the_weights_are_those_without_it(options: dict[str, Any], tmp_path: Path) -> None:
    from bnlab.integrations.lightning import BNLabCallback

    bare = fitted(made(), tmp_path, **options)
    callback = BNLabCallback(name="mine", loss=nn.CrossEntropyLoss(), probes=PROBES, runs=tmp_path)
    watched = fitted(made(), tmp_path, callback, **options)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert callback.lab is not None
    run = read_run(RunFolder(callback.lab.path))
    assert (run.state, run.step) == ("finished", STEPS)
    assert 0 <= run.final("test_accuracy") <= 1
    assert (run.series("update_ratio").values > 0).all()
    assert len(run.series("train_accuracy")) == STEPS


def test_it_measures_what_a_plain_loop_has(tmp_path: Path) -> None:
    from bnlab.integrations.lightning import BNLabCallback

    callback = BNLabCallback(name="mine", loss=nn.CrossEntropyLoss(), probes=PROBES, runs=tmp_path / "a", model="net")
    fitted(made(plain_mlp), tmp_path, callback)
    net, (x, y) = made(plain_mlp), data()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    with bnlab.watch(net, optimizer, loss=loss_of, name="mine", probes=PROBES, steps=STEPS, runs=tmp_path / "b") as lab:
        for index in range(STEPS):
            part = slice(24 * (index % 4), 24 * (index % 4) + 24)
            optimizer.zero_grad()
            loss = loss_of(net(x[part]), y[part])
            loss.backward()
            optimizer.step()
            lab.step(loss, x[part], y[part])
    one, other = (read_run(RunFolder(found.path)) for found in (callback.lab, lab))
    assert_same_journals(one, other)


def assert_same_journals(one: Run, other: Run) -> None:
    """Of the training itself; held-out metrics are logged by one alone."""
    names = [name for name in other.measured() if name not in ("step", "wall_s")]
    assert len(names) > 20
    for name in names:
        np.testing.assert_allclose(
            one.series(name).values, other.series(name).values, rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_a_batch_that_only_accumulates_is_no_step_and_a_wrong_part_is_named(tmp_path: Path) -> None:
    from bnlab.integrations.lightning import BNLabCallback

    callback = BNLabCallback(name="mine", probes=PROBES, runs=tmp_path)
    fitted(made(plain_mlp), tmp_path, callback, accumulate_grad_batches=2)
    run = read_run(RunFolder(callback.lab.path))
    assert (run.step, len(run.series("grad_norm"))) == (STEPS, STEPS)
    assert any("several forward passes" in note for note in callback.lab.notes)
    with pytest.raises(bnlab.UsageError, match=r"got 'nett'\. There are: net"):
        fitted(made(plain_mlp), tmp_path, BNLabCallback(name="other", model="nett", runs=tmp_path))


def test_an_error_in_the_training_is_the_state_of_the_run(tmp_path: Path) -> None:
    from bnlab.integrations.lightning import BNLabCallback

    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise ZeroDivisionError("here")

    callback = BNLabCallback(name="mine", probes=PROBES, runs=tmp_path)
    with pytest.raises(ZeroDivisionError):
        fitted(made(plain_mlp), tmp_path, callback, Fails())
    run = read_run(RunFolder(callback.lab.path))
    assert (run.state, run.status["error"]) == ("failed", "ZeroDivisionError: here")


def test_a_loss_that_the_trainer_does_not_give_is_no_divergence(tmp_path: Path) -> None:
    from bnlab.integrations.lightning import BNLabCallback

    def by_hand(self: Any, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.criterion(self(batch[0]), batch[1]))
        optimizer.step()

    callback = BNLabCallback(name="mine", probes=PROBES, runs=tmp_path)
    net = made(plain_mlp)
    module = module_of(net)
    type(module).training_step, module.automatic_optimization = by_hand, False
    trainer = pl.Trainer(
        max_steps=4, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*data()), 24))
    run = read_run(RunFolder(callback.lab.path))
    assert (run.state, len(run.series("grad_norm"))) == ("finished", 4)
    assert "train_loss" not in run.measured()
