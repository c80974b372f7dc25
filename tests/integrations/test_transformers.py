"""The callback in a real Trainer of transformers: the same weights, and finite measurements of the whole net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop_nets import ResNet, images
from torch import Tensor, nn

from bnlab.record.folder import RunFolder
from bnlab.record.runs import read_run

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
pytest.importorskip("accelerate", reason="the extra transformers is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the library
    pytest.mark.filterwarnings("error::bnlab.loop.watch.MeasuringWarning"),
]
STEPS = 8


class Classifier(nn.Module):
    """A net of one's own, as the Trainer takes it."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


def trained(root: Path, *callbacks: Any, **options: Any) -> nn.Module:
    torch.manual_seed(5)
    x, y = images(), torch.randint(0, 10, (96,))
    rows = [{"labels": y[index].item(), "pixel_values": x[index]} for index in range(96)]  # the labels come first
    model = Classifier()
    arguments = transformers.TrainingArguments(
        output_dir=str(root / "out"), max_steps=STEPS, per_device_train_batch_size=24, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=3,
        eval_strategy="steps", eval_steps=4, **options,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks)).train()
    return model


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_the_weights_are_those_without_it(options: dict[str, Any], tmp_path: Path) -> None:
    from bnlab.integrations.transformers import BNLabCallback

    bare = trained(tmp_path, **options)
    probes = ["standard", "probes.points=8"]
    callback = BNLabCallback(name="mine", loss=nn.functional.cross_entropy, probes=probes, runs=tmp_path / "runs")
    watched = trained(tmp_path, callback, **options)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert callback.lab is not None
    run = read_run(RunFolder(callback.lab.path))
    assert (run.state, run.step, run.spec["seed"], run.spec["norm"]) == ("finished", STEPS, 3, "batch")
    assert run.spec["data.shape"] == [1, 8, 8]
    for name in ("train_loss", "train_accuracy", "grad_norm", "delta_norm", "grad_noise", "drift_mean.pre"):
        assert len(run.series(name)) >= STEPS - 1, name
    assert run.final("test_loss") > 0
    assert not [part for part in watched.modules() if part._forward_hooks or part._forward_pre_hooks]


def test_after_an_error_the_same_callback_can_train_again(tmp_path: Path) -> None:
    from bnlab.integrations.transformers import BNLabCallback

    class Fails(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("broken on purpose")
            self.model = given["model"]

    callback, fails = BNLabCallback(name="mine", runs=tmp_path / "runs"), Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        trained(tmp_path, callback, fails)
    trained(tmp_path, callback)
    assert callback.lab is not None
    assert read_run(RunFolder(callback.lab.path)).state == "finished"
    assert not [part for part in fails.model.modules() if part._forward_hooks or part._forward_pre_hooks]


def test_a_net_of_words_is_measured_with_its_mask(tmp_path: Path) -> None:
    """BERT on sentences of several lengths, with dropout: without the mask, its copy would give other outputs."""
    from bnlab.integrations.transformers import BNLabCallback

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (96, 12), generator=draw)
    masks = (torch.arange(12) < torch.randint(4, 13, (96, 1), generator=draw)).long()
    rows = [
        {"input_ids": one * mask, "attention_mask": mask, "labels": int(one[0]) % 3}
        for one, mask in zip(ids, masks, strict=True)
    ]

    def fine_tuned(*callbacks: Any) -> nn.Module:
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=60, max_position_embeddings=12, num_labels=3, **sizes)
        )
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=STEPS, per_device_train_batch_size=16, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=3,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks)).train()
        return model

    bare = fine_tuned()
    options = {"loss": nn.functional.cross_entropy, "probes": ["standard", "probes.points=8"], "probe_batch": ids[:8]}
    callback = BNLabCallback(name="words", runs=tmp_path / "runs", **options)
    watched = fine_tuned(callback)
    assert all(map(torch.equal, bare.state_dict().values(), watched.state_dict().values()))
    assert callback.lab is not None
    run = read_run(RunFolder(callback.lab.path))
    assert (run.state, run.spec["data.shape"], run.spec["norm"]) == ("finished", [2, 12], "layer")
    for name in ("train_loss", "train_accuracy", "grad_norm", "delta_norm", "grad_noise", "drift_mean.pre"):
        assert len(run.series(name)) >= STEPS - 1, name
