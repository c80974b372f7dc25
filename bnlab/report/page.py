"""report.html: one file without script, from verdicts, figures and runs. Words and numbers are made here, looks in the
template."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bnlab.analysis.arms import title
from bnlab.analysis.claims import SIGNS, Decision, Verdict, allowed
from bnlab.analysis.load import Collection
from bnlab.analysis.statistics import FEWEST_SEEDS, LEVEL
from bnlab.core.spec import canonical
from bnlab.core.study import Study, label
from bnlab.core.text import capital, command, count, listed, number, short_key, typed
from bnlab.record.runs import Run
from bnlab.report import reading
from bnlab.report.prepare import Prepared
from bnlab.report.ranking import Interval, Ranked, Ranking
from bnlab.report.views import best_rate, geometric_mean, log_interval
from bnlab.report.write import Built, Written

MOST_VALUES = 6
"""Of a key, that are listed one by one."""
EMBEDDED = 400_000
"""Bytes of a CSV that still goes into the page; larger ones stay beside it."""


def render(
    collection: Collection,
    verdicts: Sequence[Verdict],
    prepared: Prepared,
    ranked: Ranking,
    figures: Sequence[Written],
    missing: Sequence[Mapping[str, str]],
) -> str:
    """report.html."""
    runs = collection.runs
    rates, arms = sorted({run.spec["optim.lr"] for run in runs}), prepared.order
    lines = {run.id: line(run, collection.study) or "" for run in runs}
    seeds = {run.spec["seed"] for run in runs}
    diverged = sum(run.diverged for run in runs)
    subtitle = [
        f"{count(len(runs), 'run')}: {count(len(arms), 'arm')} × {count(len(rates), 'learning rate')} × "
        f"{count(len(seeds), 'seed')}"
    ]
    pictures = [_picture(figure) for figure in figures]
    lead = 2 if verdicts else 1  # the forest plot before the main figure
    if diverged:
        subtitle.append(f"{diverged} diverged")
    if collection.unfinished:
        subtitle.append(f"{len(collection.unfinished)} not finished")
    return _filled(
        "report.html.j2",
        title=title_of(collection),
        question=collection.study.title if collection.study else "",
        subtitle=[*subtitle, *_versions(runs)],
        cards=[card_of(verdict, collection, lines) for verdict in verdicts],
        words=counted(verdict.decision for verdict in verdicts),
        ranking=ranked.by.replace("_", " ") if len(ranked.rows) > 1 else "",
        ranking_notes=ranked.notes,
        ranks=[_rank(row) for row in ranked.rows],
        table=table_of([capital(arm) for arm in arms], [number(lr) for lr in rates], squares(runs, prepared, rates)),
        setting=setting_of(runs),
        findings=reading.cards_of(runs, prepared.arms),
        lead=pictures[:lead],
        pictures=pictures[lead:],
        missing=missing,
        left_out=prepared.left_out,
        unfinished=[_unfinished(run, collection.root) for run in collection.unfinished],
        copies=len(collection.copies),
        cautions=[*collection.apart, *collection.edited, *_cautions(runs)],
        rows=[_row(run, prepared, lines[run.id]) for run in runs],
        facts=_facts(runs),
        fewest=FEWEST_SEEDS,
        level=f"{LEVEL:g}",
        css=_css(),
    )


def setting_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was trained, on what, and how: what runs have in common, and the values of what varies."""

    def values(key: str) -> str:
        found = {canonical(run.spec[key]): run.spec[key] for run in runs if run.spec.get(key) is not None}
        numbers = all(isinstance(value, int | float) for value in found.values())
        ordered = sorted(found.values(), key=lambda value: value if numbers else canonical(value))
        words = [number(value) if isinstance(value, float) else typed(value) for value in ordered]
        if len(words) <= MOST_VALUES:
            return ", ".join(words)
        return ("" if key == "seed" else f"{len(words)} values, ") + f"{words[0]} to {words[-1]}"

    def titles(group: str) -> str:
        return listed(sorted({title(run, group) for run in runs}))

    def options(group: str, *names: str) -> list[str]:
        keys = {short_key(name): values(f"{group}.{name}") for name in names}
        return [f"{name} {found}" for name, found in keys.items() if found not in ("", "0", "constant")]

    # A plugin's net has an activation and weights of its own, whatever the keys that all models share say.
    own = any(run.spec.get("model") not in _models() for run in runs)
    length = [f"{found} {key}" for key in ("steps", "epochs") if (found := values(key))]
    more = options("optim", "momentum", "weight_decay", "schedule")
    rows = {
        "Data": [titles("data"), *options("data", "batch_size", "subset", "label_noise")],
        "Net": [titles("model"), *options("model", *([] if own else ["depth", "width", "activation", "init"]))],
        "Training": [*length, values("loss").replace("_", " "), titles("optim"), *more],
        "Learning rate": [values("optim.lr")],
        "Seed": [values("seed")],
    }
    return [(name, ", ".join(filter(None, words))) for name, words in rows.items()]


@cache
def _models() -> frozenset[str]:
    """Names of the models that come with bnlab; none is imported."""
    package = find_spec("bnlab.models")
    folders = package.submodule_search_locations if package else None
    return frozenset(module.name for module in iter_modules(folders))


def index(root: Path, parts: Sequence[Built]) -> str:
    """The page that leads to the reports of several studies."""
    studies = [
        {
            "name": part.path.parent.relative_to(root).as_posix(),
            "link": part.path.relative_to(root).as_posix(),
            "runs": part.runs,
            "unfinished": len(part.unfinished),
            "words": counted(verdict.decision for verdict in part.verdicts),
        }
        for part in parts
    ]
    return _filled("index.html.j2", title=root.absolute().name, studies=studies, css=_css())


def gallery(**content: Any) -> str:
    """The page over several studies and the statements on which they bear."""
    return _filled("gallery.html.j2", css=_css(), **content)


def title_of(collection: Collection) -> str:
    """The study's name, else the folder's; of a single run, its arm, rate and seed."""
    if collection.study is not None:
        return collection.study.name
    if len(collection.runs) == 1 and collection.runs[0].path == collection.root:
        run = collection.runs[0]
        return f"{run.spec.get('norm')}, lr {number(float(run.spec['optim.lr']))}, seed {run.spec['seed']}"
    return collection.root.absolute().name


def table_of(arms: Sequence[str], rates: Sequence[str], fields: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """One row per learning rate; with many arms, one row per arm."""
    if len(arms) > max(5, len(rates)):
        return {"corner": "arm", "heads": rates, "rows": list(zip(arms, zip(*fields, strict=True), strict=True))}
    return {"corner": "learning rate", "heads": arms, "rows": list(zip(rates, fields, strict=True))}


def squares(runs: Sequence[Run], prepared: Prepared, rates: Sequence[float]) -> list[list[dict[str, Any]]]:
    """For every learning rate, a field per arm; the best only where all train."""
    by_arm = prepared.grid(runs)
    best = {arm: best_rate(here) for arm, here in by_arm.items()}
    return [[_square(here.get(lr, []), best[arm] == lr) for arm, here in by_arm.items()] for lr in rates]


def _square(runs: Sequence[Run], best: bool) -> dict[str, Any]:
    """One arm at one learning rate: geometric mean of the final training loss over the seeds that did not diverge."""
    losses = [run.final("train_loss") for run in runs if run.finished]
    band = log_interval(losses)
    accuracies = [x for run in runs if run.finished and math.isfinite(x := run.final("test_accuracy"))]
    diverged, dead = sum(run.diverged for run in runs), sum(run.dead for run in runs)
    troubles = [f"✕ {diverged} of {len(runs)} diverged"] * bool(diverged)
    troubles += [f"○ {dead} of {len(runs)} at chance"] * bool(dead)
    return {
        "value": shown(geometric_mean(losses)) if losses else "",
        "band": f"{shown(band[0])} to {shown(band[1])}" if band else "",
        "accuracy": f"{100 * sum(accuracies) / len(accuracies):.1f} %" if accuracies else "",
        "troubles": troubles,
        "best": best,
    }


def _rank(row: Ranked) -> dict[str, Any]:
    """A row of the table of arms."""

    def between(interval: Interval | None) -> str:
        return f"{shown(interval[0])} to {shown(interval[1])}" if interval else ""

    return {
        "arm": capital(row.arm),
        "lr": number(row.lr),
        "n": row.n,
        "diverged": f"{row.diverged} of {row.runs}" if row.diverged else "–",
        "loss": shown(row.loss),
        "loss_interval": between(row.loss_interval),
        "score": shown(row.score),
        "score_interval": between(row.score_interval),
        "seconds": shown(row.seconds),
        "step": shown(1000 * row.step_s),
        "parameters": f"{row.parameters:,.0f}" if math.isfinite(row.parameters) else "–",
        "beats": ", ".join(row.beats) or "–",
    }


def _picture(figure: Written) -> dict[str, Any]:
    drawn = figure.drawn
    small = len(figure.csv) <= EMBEDDED
    return {
        "name": drawn.name,
        "title": drawn.title,
        "alt": drawn.alt,
        "about": drawn.about,
        "light": _data("image/svg+xml", figure.svg),
        "dark": _data("image/svg+xml", figure.dark_svg),
        "data": _data("text/csv", figure.csv) if small else f"figures/{drawn.name}.csv",
    }


def _data(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _row(run: Run, prepared: Prepared, command: str) -> dict[str, Any]:
    status = "diverged" if run.diverged else "finished" if run.trains else "at chance"
    accuracy = run.final("test_accuracy")
    return {
        "id": run.id,
        "arm": prepared.arms[run.id],
        "lr": number(run.lr),
        "seed": str(run.spec["seed"]),
        "status": f"{status} at {run.status.get('step', '?')}" if run.diverged else status,
        "bad": not run.trains,
        "loss": shown(run.final("train_loss")),
        "accuracy": "–" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %",
        "command": command,
    }


def _unfinished(run: Run, root: Path) -> dict[str, str]:
    status = str(run.status.get("status", "not started or unreadable"))
    step, steps = run.status.get("step"), run.status.get("steps")
    return {
        "run": run.path.relative_to(root).as_posix(),
        "status": status + (f", step {step} of {steps}" if step is not None and steps is not None else ""),
        "error": str(run.status.get("error", "")),
        "log": (run.path.relative_to(root) / "log.txt").as_posix(),
    }


def known(runs: Sequence[Run], key: str) -> tuple[str, ...]:
    """The values that runs record of a part of their provenance."""
    return tuple(sorted({str(run.provenance[key]) for run in runs if run.provenance.get(key) is not None}))


def _versions(runs: Sequence[Run]) -> list[str]:
    """Versions and training time, for the line under the title."""
    shas = [sha[:7] for sha in known(runs, "git_sha")]
    found = [f"bnlab {', '.join(known(runs, 'bnlab'))}"] if known(runs, "bnlab") else []
    found += [f"git {', '.join(shas)}"] if 0 < len(shas) <= 3 else [f"{len(shas)} git commits"] if shas else []
    seconds = sum(float(run.status.get("timing", {}).get("run_s", 0.0)) for run in runs)
    return [*found, f"{_duration(seconds)} of training"] if seconds else found


def _duration(seconds: float) -> str:
    """
    >>> _duration(41.2), _duration(300), _duration(9000)
    ('41 s', '5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _cautions(runs: Sequence[Run]) -> list[str]:
    """Differences between the runs that are not in their specs."""
    found = []
    for key, what in (("torch", "versions of torch"), ("device", "kinds of machine"), ("git_sha", "git commits")):
        if len(values := known(runs, key)) > 1:
            shown = ", ".join(value[:12] for value in values[:4])
            found.append(f"The runs come from {len(values)} {what}: {shown}{', …' if len(values) > 4 else ''}.")
    dirty = sum(bool(run.provenance.get("git_dirty")) for run in runs)
    if dirty:
        found.append(f"{dirty} of {len(runs)} runs were made with changes that no commit has.")
    return found


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Versions and machines."""
    keys = {"bnlab": "bnlab", "git_sha": "git", "torch": "torch", "numpy": "numpy", "python": "Python"}
    keys |= {"platform": "platform", "device": "device", "threads": "threads"}
    return [(name, ", ".join(known(runs, key))) for key, name in keys.items() if known(runs, key)]


def _css() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def _filled(name: str, **content: Any) -> str:
    """A template with its content, escaped except for `css`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = lambda minutes: _duration(60 * minutes)
    page: str = environment.get_template(name).render(content)
    return page


KINDS: Mapping[Decision, str] = {
    "supported": "good",
    "refuted": "bad",
    "inconclusive": "open",
    "direction only": "open",
    "not tested": "none",
}
"""The class of each decision in the style sheet."""


def card_of(verdict: Verdict, collection: Collection, lines: Mapping[str, str]) -> dict[str, Any]:
    """`lines`: the command of every run by its id."""
    claim = verdict.claim
    unit = "×" if claim.compare == "ratio" else ""
    by_place = {collection.place(run): lines[run.id] for run in collection.runs}
    both = [arm for arm in (verdict.treated, verdict.control) if arm is not None]
    facts = [f"where {label(claim.where)}" if claim.where else "", count(verdict.n, "seed") if verdict.n else ""]
    if verdict.p is not None and verdict.least_p is not None:
        facts.append(f"p = {verdict.p:.2g}, the smallest possible {verdict.least_p:.2g}")
    if verdict.repeat is not None:
        facts.append(f"the same with {100 * verdict.repeat:.0f} % of other draws of seeds")
    least = claim.smallest_effect
    bound = f"{'above' if least else 'more than'} {shown(least)}{unit}" if least is not None else allowed(claim)
    study = collection.study
    typed = collection.study_provenance.get("line")
    again = [str(typed or f"bnlab sweep --config {study.name}")] if study else []
    return {
        "sign": SIGNS[verdict.decision],
        "kind": KINDS[verdict.decision],
        "decision": verdict.decision,
        "name": claim.name,
        "text": claim.text,
        "source": claim.source,
        "effect": f"{shown(verdict.effect)}{unit}" if verdict.effect is not None else "",
        "interval": f"{shown(verdict.interval[0])} to {shown(verdict.interval[1])}{unit}" if verdict.interval else "",
        "facts": " · ".join(fact for fact in (*facts, f"required: {bound}") if fact),
        "why": verdict.measured or verdict.why,
        "cautions": verdict.cautions,
        "arms": tuple((f"{arm.label} ({arm.point})", ", ".join(shown(x) for x in arm.values)) for arm in both),
        "commands": tuple(again + [by_place[place] for arm in both for place in arm.runs if by_place.get(place)]),
    }


def counted(decisions: Iterable[Decision]) -> list[tuple[str, str, str]]:
    """Sign, class and `3 supported`, for every decision that occurs."""
    found = Counter(decisions)
    return [(SIGNS[one], KINDS[one], f"{found[one]} {one}") for one in SIGNS if found[one]]


def line(run: Run, study: Study | None) -> str | None:
    """The `bnlab train` line: the experiment and the overrides that were typed, or that the study has, with this run's
    own values in the place of axes. None where the run does not record its experiment."""
    typed_words = [str(word) for word in run.provenance.get("argv", [])]
    if run.spec.get("loop"):  # one of the user's own
        return command("python", *typed_words)
    words = typed_words[1:]
    if study is not None and "train" not in words[:1]:
        config: str | None = study.base
        changes = {key: typed(value) for key, value in study.overrides.items()}
        changes |= {key: typed(run.spec[key]) for key in study.axes if key in run.spec}
    else:
        parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        config = dict(pairwise(parts)).get("--config")
        changes = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
        if words[:1] == ["sweep"]:
            changes = {key: typed(run.spec[key]) if key in run.spec else value for key, value in changes.items()}
    if config is None:
        return None
    changes["name"] = run.path.absolute().parents[2].name  # runs are in NAME/norm/lr=.../seed=...
    return command("bnlab", "train", "--config", config, *(f"{key}={value}" for key, value in changes.items()))


def shown(value: float | None) -> str:
    """Three digits; a dash for what is not there.

    >>> [shown(x) for x in (0.0049342, 12345.6, float("nan"), 1e-7)]
    ['0.00493', '12346', '–', '1e-7']
    """
    return "–" if value is None or math.isnan(value) else "∞" if math.isinf(value) else number(value)
