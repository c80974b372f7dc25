"""The machine: provenance of a run, and settings of the process that make runs faster and repeatable."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import bnlab


def prepare(threads: int) -> None:
    """Set the number of threads of this process, before the first operation of a run; on a GPU, full float32 and
    deterministic convolutions.

    With glibc, freed large blocks also stay in the process. Otherwise every step returns them to the system and faults
    them in again, which takes a quarter of the time of a small convolutional net.
    """
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for parameter, value in ((-1, 2**30), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(ctypes.c_int(parameter), ctypes.c_int(value))


@cache
def best_device() -> Literal["cuda", "mps", "cpu"]:
    """What `device=auto` is on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine and command line, for spec.yaml."""
    return {
        "bnlab": bnlab.__version__,
        **_git(Path(__file__).parent),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "argv": sys.argv,
    }


@cache
def _cpu() -> str:
    """The processor's name, from /proc/cpuinfo on Linux, from `platform` elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


@cache
def _git(folder: Path) -> dict[str, Any]:
    """The commit of the checkout that bnlab runs from, if any, and whether tracked files have changed."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"git_sha": None, "git_dirty": None}
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": None if changed is None else bool(changed)}


class TooLongError(Exception):
    """A step took longer than `launch.timeout`."""


GRACE_S = 30.0
_limited = 0.0


def limit(seconds: float | None) -> None:
    """From now on, so many seconds may pass until the next call; else `TooLongError` is raised in the main thread, and
    where that does not help, the process ends `GRACE_S` later with its stack on stderr. None: any number may."""
    global _limited
    now = time.monotonic()
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return
    if seconds is None:
        if _limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        _limited = 0.0
        return

    def stop(number: int, frame: object) -> None:
        raise TooLongError(f"no step for {seconds:g} s (launch.timeout)")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if now - _limited > 1:  # it starts a thread
        _limited = now
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=sys.__stderr__ or sys.stderr)
