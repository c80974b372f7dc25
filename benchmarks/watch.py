"""What `bnlab.watch` and its callbacks cost, against the same loop, or the same trainer, without them.

    python benchmarks/watch.py [--json] [--turns N] [--net mlp|cnn]

The nets, the data and the turns are those of step.py: a measurement every 10 steps, each contestant with one thread in
a process of its own. A ratio is the median over turns of a contestant's time over that of its own reference in the same
round: the bare loop, or a trainer without the callback. Trainers and fastai's ActivationStats take part where they are
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step import BATCH, LR, TURN, Tick, bare_cnn, bare_loop, bare_mlp, noise_images, show
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from turns import Apart, race, ratio

import bnlab
from bnlab.run import host

EVERY, STEPS = 10, 10**6
BUDGETS = {"mlp": 1.10, "cnn": 1.05}
OPTIONS: dict[str, Any] = {
    "loss": F.cross_entropy,
    "name": "watched",
    "steps": STEPS,
    "probes": ["economy", f"probes.points={STEPS // EVERY}"],
}
Make = Callable[[], nn.Module]
Body = Callable[[Tick], object]


def watched_loop(make: Make, folder: Path) -> Body:
    """The bare loop of step.py in `bnlab.watch`."""

    def body(tick: Tick) -> None:
        torch.manual_seed(0)
        net, data = make(), noise_images()
        x, y = data.train.x, data.train.y
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with bnlab.watch(net, optimizer, probe_batch=x[:128], runs=folder, **OPTIONS) as lab:
            for step in range(10**9):
                tick()
                position = step % (len(x) // BATCH)
                if position == 0:
                    order = torch.randperm(len(x))
                chosen = order[position * BATCH : (position + 1) * BATCH]
                batch, targets = x[chosen], y[chosen]
                loss = F.cross_entropy(net(batch), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                lab.step(loss, batch, targets)

    return body


def lightning_loop(make: Make, folder: Path, *, watching: bool) -> Body:
    """Lightning's Trainer on the same net and data."""

    def body(tick: Tick) -> None:
        import lightning.pytorch as pl

        from bnlab.integrations.lightning import BNLabCallback

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = make()

            def training_step(self, batch: Any, index: int) -> Tensor:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=LR)

        class Ticks(pl.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                tick()

        torch.manual_seed(0)
        x, y = noise_images().train.x, noise_images().train.y
        given = {**OPTIONS, "probe_batch": x[:128], "runs": folder}
        callbacks = [Ticks(), *([BNLabCallback(**given)] if watching else [])]
        trainer = pl.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            default_root_dir=folder,
        )
        trainer.fit(Module(), DataLoader(TensorDataset(x, y), BATCH, shuffle=True))

    return body


def transformers_loop(make: Make, folder: Path, *, watching: bool) -> Body:
    """Hugging Face's Trainer on the same net and data."""

    def body(tick: Tick) -> None:
        import transformers

        from bnlab.integrations.transformers import BNLabCallback

        class Classifier(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = make()

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.net(x)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        class Ticks(transformers.TrainerCallback):
            def on_step_begin(self, *_: Any, **given: Any) -> None:
                tick()

        torch.manual_seed(0)
        x, y = noise_images().train.x, noise_images().train.y
        given = {**OPTIONS, "probe_batch": x[:128], "runs": folder, "call": lambda net, x: net.net(x)}
        rows = TensorDataset(x, y)
        trainer = transformers.Trainer(
            Classifier(),
            transformers.TrainingArguments(
                output_dir=str(folder / "out"),
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                optim="sgd",
                learning_rate=LR,
                lr_scheduler_type="constant",
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            data_collator=lambda found: {
                "x": torch.stack([one for one, _ in found]),
                "labels": torch.stack([one for _, one in found]),
            },
            callbacks=[Ticks(), *([BNLabCallback(**given)] if watching else [])],
        )
        trainer.train()

    return body


def fastai_loop(make: Make, *, watching: bool) -> Body:
    """fastai's Learner, and with it ActivationStats every 10 steps, with histograms."""

    def body(tick: Tick) -> None:
        from fastai.callback.hook import ActivationStats
        from fastai.data.core import DataLoaders
        from fastai.learner import Callback, Learner
        from fastai.optimizer import OptimWrapper

        class Ticks(Callback):
            def before_batch(self) -> None:
                tick()

        torch.manual_seed(0)
        rows = TensorDataset(noise_images().train.x, noise_images().train.y)
        loader = DataLoader(rows, BATCH, shuffle=True, drop_last=True)
        stats = [ActivationStats(with_hist=True, every=EVERY)] if watching else []
        learner = Learner(
            DataLoaders(loader, loader),
            make(),
            F.cross_entropy,
            opt_func=partial(OptimWrapper, opt=torch.optim.SGD),
            cbs=[Ticks(), *stats],
        )
        with learner.no_logging():
            learner.fit(10**4, LR)

    return body


def contest(net: str, turns: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each contestant, with its ratio to its reference."""
    make = {"mlp": bare_mlp, "cnn": bare_cnn}[net]
    pairs: list[tuple[str, Body, str, Body]] = [
        ("bare loop", bare_loop(make), "bnlab.watch, economy", watched_loop(make, folder / "watch"))
    ]
    for name, loop in (("lightning", lightning_loop), ("transformers", transformers_loop)):
        if importlib.util.find_spec(name):
            bodies = [loop(make, folder / name, watching=watching) for watching in (False, True)]
            pairs.append((f"{name}'s Trainer", bodies[0], f"{name}'s Trainer, BNLabCallback", bodies[1]))
    if importlib.util.find_spec("fastai"):
        stats = "fastai's Learner, ActivationStats"
        pairs.append(("fastai's Learner", fastai_loop(make, watching=False), stats, fastai_loop(make, watching=True)))
    found = []
    for name, body, name_with, body_with in pairs:  # pair by pair: idle processes hold memory and caches
        reference, contestant = Apart(name, body), Apart(name_with, body_with)
        race([reference, contestant], turns=turns, steps=TURN)
        for one in (reference, contestant):
            found.append(
                {
                    "net": net,
                    "contestant": one.name,
                    "step_ms": 1e3 * statistics.median(one.slices) / TURN,
                    "ratio": ratio(one, reference),
                    "budget": BUDGETS[net] if one is contestant and "bnlab.watch" in name_with else None,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--net", choices=["mlp", "cnn"], action="append")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    host.prepare(1)
    with tempfile.TemporaryDirectory() as folder:
        nets = arguments.net or ["mlp", "cnn"]
        rows = [row for net in nets for row in contest(net, arguments.turns, Path(folder) / net)]
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
