"""Independent named random streams.

Every random choice of a run is a function of the run's seed and of a name, never of what was drawn before. So adding
batch norm cannot shift another layer's weights, two arms of one seed see the same batches, and a resumed run needs no
saved random state.

The streams of a run: `init` (and the parameter's name), `order` (and the epoch), `augment` (and the step),
`noise` (by itself, and with a site's name and step), `probe`. `data` belongs to no run: what it makes is the same for
every seed.
"""

from __future__ import annotations

import hashlib

import torch

STREAMS = ("init", "order", "augment", "noise", "probe", "data")


def stream(seed: int, name: str, *key: object) -> torch.Generator:
    """The generator of stream `name` at `key`: the same for the same arguments, on every machine. On the CPU, so that
    a run on another device starts from the same weights and sees the same batches.

    >>> torch.equal(torch.rand(3, generator=stream(0, "order", 1)), torch.rand(3, generator=stream(0, "order", 1)))
    True
    >>> torch.equal(torch.rand(3, generator=stream(0, "order", 1)), torch.rand(3, generator=stream(0, "order", 2)))
    False
    """
    assert name in STREAMS, f"no stream {name!r}"
    words = "/".join(str(part) for part in (seed, name, *key))
    digest = hashlib.sha256(words.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
