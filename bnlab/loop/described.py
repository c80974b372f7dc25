"""The spec of a run of the user's own loop, which has what is known of it, and the claims over such runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import bnlab
from bnlab.analysis.claims import check
from bnlab.config import load
from bnlab.core.errors import UsageError, refuse_path
from bnlab.core.registry import NORMS, OPTIMIZERS
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import ProbesSpec, id_of
from bnlab.core.study import Study
from bnlab.core.text import command
from bnlab.loop.twin import KEY, unwrapped
from bnlab.net.build import Net
from bnlab.net.trace import INSTANCE_NORMS
from bnlab.net.wrap import BATCH_NORMS
from bnlab.record.folder import write_atomically

BASE = "deep_mlp"
"""Any experiment: of it, only what is shared by all is read."""
LOOP = "own"
"""The value of `loop` in the spec of a run that bnlab did not train."""
KINDS: dict[str, tuple[type, ...]] = {
    "batch": (*BATCH_NORMS, nn.SyncBatchNorm),
    "layer": (nn.LayerNorm,),
    "rms": (nn.RMSNorm,),
    "group": (nn.GroupNorm,),
    "instance": INSTANCE_NORMS,
}


def probes_spec(probes: str | Sequence[str], batch: int) -> ProbesSpec:
    """The probes of a config group, with overrides: `economy`, or `["standard", "probes.points=50"]`. Those on a probe
    batch have one of `batch` examples.

    Raises:
        UsageError: no such group, key or value.
    """
    name, *more = [probes] if isinstance(probes, str) else probes
    found = load(BASE, [f"probes={name}", *more]).probes
    own = {key: {**of, "batch": batch} if "batch" in of else of for key, of in found.options.items()}
    return ProbesSpec(points=found.points, eval_points=found.eval_points, options=own)


def arm_of(net: Net) -> str:
    """What the norms of a net are, by the name that bnlab has for it; `own` where they differ, or it has none."""
    kinds = {_kind(norm) for norm in net.every_norm.values()}
    return "none" if not kinds else kinds.pop() if len(kinds) == 1 else "own"


def _kind(norm: nn.Module) -> str:
    module = type(norm).__module__
    if module.startswith("bnlab.norms."):
        return module.rpartition(".")[2]
    return next((name for name, kinds in KINDS.items() if isinstance(norm, kinds)), "own")


def loss_name(loss: object) -> tuple[str, str]:
    """The name of a loss and its reduction, as specs have them; that of its class or function for others."""
    reduction = str(getattr(loss, "reduction", "mean"))
    plain = isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None and not loss.label_smoothing
    if plain or loss is nn.functional.cross_entropy:
        return "cross_entropy", reduction
    if isinstance(loss, nn.MSELoss) or loss is nn.functional.mse_loss:
        return "mse", reduction
    return str(getattr(loss, "__name__", type(loss).__name__)) if loss is not None else "own", reduction


def spec_tree(
    *,
    name: str,
    arm: str,
    seed: int,
    steps: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: object,
    x: Tensor,
    precision: torch.dtype | None,
    probes: ProbesSpec,
) -> dict[str, Any]:
    """What spec.yaml says of the run; `x` is its first batch. What is not known has no key, such as the data or the
    schedule."""
    options = {
        key: _plain(value)
        for key, value in optimizer.param_groups[0].items()
        if isinstance(value, bool | int | float | str | tuple | Tensor) and key not in ("lr", "initial_lr")
    }
    loss_of, reduction = loss_name(loss)
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "loop": LOOP,
        "loss": loss_of,
        "reduction": reduction,
        "device": x.device.type,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "precision": "float32" if precision is None else str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "model": {"name": type(model).__name__},
        "norm": {"name": arm},
        "data": {"name": LOOP, "batch_size": len(x), "shape": list(x.shape[1:])},
        "optim": {"name": type(optimizer).__name__.lower(), "lr": rate_of(optimizer), **options},
        "probes": {"points": probes.points, "eval_points": probes.eval_points, **probes.options},
    }


def _plain(value: Any) -> Any:
    """A setting of an optimizer as YAML has it."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, Tensor) else value


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of its first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


def folder_of(tree: Mapping[str, Any]) -> str:
    """The path in the runs folder, as for runs of bnlab: the arm first; with the rate at the start."""
    arm, lr, seed = tree["norm"]["name"], tree["optim"]["lr"], tree["seed"]
    return f"{tree['name']}/{arm}/lr={lr:.12g}/seed={seed}-{id_of(tree, ())}"


def facts_of(net: Net, tree: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """What joins the provenance of the run."""
    arm, optimizer = tree["norm"]["name"], tree["optim"]["name"]
    title = NORMS[arm].title if arm in NORMS.names() else arm
    titles = {"norm": title, "optim": OPTIMIZERS[optimizer].title if optimizer in OPTIMIZERS.names() else optimizer}
    return {"sites": [site.name for site in net.sites], "titles": titles, "notes": list(notes)}


def refuse_arguments(given: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises UsageError for arguments of `watch` that cannot be."""
    for key in ("name", "arm"):
        if key == "name" or given[key] is not None:
            refuse_name(key, given[key])
    for key, what, kind in ((KEY, model, nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
        if not isinstance(what, kind):
            raise UsageError(key, f"is not of the kind {kind.__name__}", type(what).__name__)
    for key, least in (("steps", 1), ("seed", 0)):
        if type(given[key]) is not int or given[key] < least:
            raise UsageError(key, f"must be a whole number, at least {least}", given[key])
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("optimizer", "makes several updates in a step, which cannot be told apart", "LBFGS")
    trained = {id(param) for param in unwrapped(model)[0].parameters() if param.requires_grad}
    if not trained & {id(param) for group in optimizer.param_groups for param in group["params"]}:
        raise UsageError("optimizer", "has none of the model's parameters", remedy="Make it of model.parameters().")


def refuse_name(key: str, name: object) -> None:
    """Raises UsageError for what cannot be the name of a folder."""
    if not isinstance(name, str) or not name:
        raise UsageError(key, "must be a name", name)
    refuse_path(key, *name.split("/"))


def study_of(name: str, claims: Path | str | None) -> Study | None:
    """The claims of a small YAML: `claims`, and if wanted `title` and `figures`, as a study has them.

    Raises:
        UsageError: no such file, or claims that could never be judged.
    """
    if claims is None:
        return None
    file = Path(claims)
    try:
        tree = safe_yaml(file.read_bytes())
    except OSError as error:
        raise UsageError("claims", (error.strerror or str(error)).lower(), str(file)) from None
    except ValueError as error:
        raise UsageError("claims", f"not YAML: {error}", str(file)) from None
    if not isinstance(tree, dict) or not tree.get("claims"):
        raise UsageError("claims", "has no `claims`", str(file), "Write them as in a study (docs/studies.md).")
    try:
        study = Study.from_tree({"name": name, "base": LOOP, **tree})
        check(study)
        return study
    except UsageError as error:
        raise UsageError(str(file), str(error).rstrip(".")) from None


def write_claims(root: Path, study: Study, digests: Mapping[str, str]) -> None:
    """study.yaml of the folder whose runs the claims are judged over; a report says which were edited since a run."""
    provenance = {"bnlab": bnlab.__version__, "line": command("python", *sys.argv), "claims": dict(digests)}
    tree = {**study.tree(), "provenance": provenance}
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / "study.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())


def notes_of(net: Net, optimizer: torch.optim.Optimizer) -> list[str]:
    """What there is to say before the first step."""
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    several = f"parameter groups have {len(rates)} learning rates: lr is that of the first"
    return [*net.notes, *([several] if len(rates) > 1 else [])]
