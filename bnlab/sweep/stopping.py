"""In a process of a sweep: whether it was asked to stop, by the sweep or by the sweep's end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import threading

_reasons: list[str] = []


def asked() -> str | None:
    """Why this process should stop, if it should."""
    return _reasons[0] if _reasons else None


def listen() -> None:
    """From now on SIGTERM is noted, and so is the end of the process that started this one, however it ends: what
    trained on would be in the way of the next sweep. A terminal's own signals go to every process on it; they are the
    sweep's to answer."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _reasons.append("SIGTERM"))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        _reasons.append("the end of the sweep")


SHIELDED = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""Signals that are held back from a new process until it listens."""
