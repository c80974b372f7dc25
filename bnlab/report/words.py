"""Words that several figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnlab.report.base import View

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def capital(text: str) -> str:
    """The first letter large, the rest as it is: `L1 batch norm` stays.

    >>> capital("batch norm"), capital("RMS norm")
    ('Batch norm', 'RMS norm')
    """
    return text[:1].upper() + text[1:]


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "seed"), count(3, "seed"), count(2, "learning rate")
    ('1 seed', '3 seeds', '2 learning rates')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def listed(parts: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def seeds_of(view: View) -> str:
    return count(len(view.seeds), "seed")


def optimizer(view: View) -> str:
    """`SGD`; several, one after the other."""
    names = sorted({str(run.spec.get("optim", "?")) for group in view.groups for run in group.runs})
    return ", ".join(OPTIMIZERS.get(name, name) for name in names)


def footnote(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def layer(site: str, number: int) -> str:
    """`layer 3 (fc)` of the site `L02_fc`."""
    kind = site.partition("_")[2]
    return f"layer {number} ({kind})" if kind else f"layer {number}"


def compact(value: float) -> str:
    """A number for a tick.

    >>> [compact(x) for x in (0.0001, 1e-07, 0.3, 10.0, 30000.0, 0.00316228, 1e6)]
    ['1e-4', '1e-7', '0.3', '10', '30000', '0.00316', '1e6']
    """
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e3:
        return f"{value:.3g}"
    if 1e3 <= size < 1e5:
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def number(value: float | None) -> str:
    """Three digits; a dash for what is not there.

    >>> [number(x) for x in (0.0049342, 12345.6, float("nan"), 2.0, 1e-7)]
    ['0.00493', '12346', '–', '2', '1e-7']
    """
    return "–" if value is None or math.isnan(value) else "∞" if math.isinf(value) else compact(value)
