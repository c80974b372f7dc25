"""Executors by the name that `launch=NAME` gives, and the places in which a local one runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.sweep.base import Executor
from bnlab.sweep.inline import Inline
from bnlab.sweep.local import Local


def executor(spec: RunSpec) -> Executor:
    """The executor for runs like this one.

    Raises:
        UsageError: settings that it cannot follow.
    """
    return EXECUTORS[spec.launch.name](spec)


def _inline(spec: RunSpec) -> Executor:
    if spec.launch.workers not in ("auto", 1):
        raise UsageError(
            "launch.workers", "launch=inline runs one after the other", spec.launch.workers, "Use launch=local."
        )
    return Inline()


def _local(spec: RunSpec) -> Executor:
    devices = _gpus() if spec.device == "cuda" else []
    return Local(places(spec.launch.workers, spec.threads, cores(), devices, spec.launch.per_device))


EXECUTORS: Mapping[str, Callable[[RunSpec], Executor]] = {"inline": _inline, "local": _local}


def places(
    workers: int | str, threads: int, cores: int, devices: Sequence[str], per_device: int
) -> list[dict[str, str]]:
    """The environments of runs at once. On GPUs, `per_device` on each, the GPUs in turn, so that few runs are spread
    over all of them; else as many as have a core for each of their threads.

    >>> places("auto", 1, 16, ["0", "3"], 2)
    [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '3'}, {'CUDA_VISIBLE_DEVICES': '0'}, \
{'CUDA_VISIBLE_DEVICES': '3'}]
    >>> len(places("auto", 4, 16, [], 1)), len(places(3, 1, 16, [], 1))
    (4, 3)
    """
    if devices:
        found = [{"CUDA_VISIBLE_DEVICES": device} for _ in range(per_device) for device in devices]
        return found if workers == "auto" else found[: int(workers)]
    count = max(1, cores // threads) if workers == "auto" else int(workers)
    return [{} for _ in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES takes them; empty where there is none, which every run will say."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in named.split(",")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
