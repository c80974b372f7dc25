"""From run folders alone to report.html, figures, verdicts.json and summary.parquet."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.analysis.claims import SIGNS, Verdict, facts
from bnlab.analysis.load import STUDY_FILE, VERDICTS_FILE, Collection, read_runs, read_study, write_summary
from bnlab.analysis.verdicts import judge
from bnlab.core.errors import UsageError, cause, nearest
from bnlab.core.safe import safe_json
from bnlab.core.study import Study
from bnlab.record.findings import READS
from bnlab.record.folder import NoRunsError, RunFolder, find_runs, runs_below, write_atomically
from bnlab.report import page
from bnlab.report.figures import FIGURES, in_order, options_of
from bnlab.report.prepare import Asked, Prepared, prepare
from bnlab.report.ranking import Ranking, ranking
from bnlab.report.style import Format
from bnlab.report.views import Drawn, Missing, View
from bnlab.report.write import Built, Written, styled, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def build(root: Path, plugins: Sequence[str] = (), out: Path | None = None) -> Built:
    """Write `report.html`, `figures/`, `summary.parquet` and, of a study, `verdicts.json` into `root`, or into `out`,
    for the run, the study or the grid that `root` is; of a folder of several studies, one report in each and a page
    that leads to them. `plugins` are files that may run (`read_runs`).

    Raises:
        NoRunsError: no such directory, no runs in it, or none that has ended.
        UsageError: a study.yaml that is not a study.
    """
    runs_below(root)
    folders = studies_in(root)
    to = out or root
    if folders == [root]:
        return _one(root, plugins, to)
    ended = [folder for folder in folders if _has_ended(folder)]
    parts = tuple(_one(folder, plugins, to / folder.relative_to(root)) for folder in ended)
    if not parts:
        raise _nothing(root)
    write_atomically(to / "report.html", page.index(to, parts).encode())
    return Built(
        path=to / "report.html",
        verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
        figures=tuple(f"{part.path.parent.name}/{name}" for part in parts for name in part.figures),
        unfinished=tuple(run for part in parts for run in part.unfinished),
        runs=sum(part.runs for part in parts),
        failed=tuple(line for part in parts for line in part.failed),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        parts=parts,
    )


def studies_in(root: Path) -> list[Path]:
    """The folders that a report is about: `root`, or the studies below it. Runs are in NAME/norm/lr=.../seed=...; a
    folder with a study.yaml, a single run, and folders of another layout are one report."""
    runs = find_runs(root)
    if not runs:
        return []
    above = {run.path.parents[2] if len(run.path.parents) > 2 else root for run in runs}
    whole = (root / STUDY_FILE).is_file() or RunFolder(root).spec_file.is_file()
    if whole or any(folder == root or root not in folder.parents for folder in above):
        return [root]
    return sorted(above)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a report shows, before it is written."""

    collection: Collection
    verdicts: tuple[Verdict, ...]
    prepared: Prepared
    ranked: Ranking
    figures: list[Written]
    missing: list[dict[str, str]]


def drawn_from(root: Path, plugins: Sequence[str] = (), shape: Format | None = None) -> Contents:
    """Read the runs, judge the claims and draw the figures, in a given shape.

    Raises:
        NoRunsError: no run has ended.
        UsageError: a study.yaml that is not a study.
    """
    keep = [*READS, *(name for entry in in_order() for name in entry.reads)]
    study, _ = read_study(root / STUDY_FILE)
    keep += [figure["of"] for figure in (study.figures if study else ()) if isinstance(figure.get("of"), str)]
    collection = read_runs(root, keep=keep, plugins=plugins)
    if not collection.runs:
        raise _nothing(root)
    verdicts = tuple(judge(collection))
    prepared = prepare(collection, verdicts)
    figures, missing = draw_all(prepared, shape)
    return Contents(
        collection=collection,
        verdicts=verdicts,
        prepared=prepared,
        ranked=ranking(collection, prepared),
        figures=figures,
        missing=missing,
    )


def _one(root: Path, plugins: Sequence[str], to: Path) -> Built:
    found = drawn_from(root, plugins)
    collection, verdicts, figures, ranked = found.collection, found.verdicts, found.figures, found.ranked
    html = page.render(collection, verdicts, found.prepared, ranked, figures, found.missing)
    folder = to / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{figure.drawn.name}.{kind}": data for figure in figures for kind, data in figure.files().items()}
    for old in folder.iterdir() if to == root else ():  # figures of runs that are gone
        if old.suffix in (".svg", ".png", ".csv") and old.name not in files:
            old.unlink()
    for name, data in files.items():
        write_atomically(folder / name, data)
    write_summary(collection, to / "summary.parquet")
    write_atomically(to / "report.html", html.encode())
    facts_ = _facts(collection, collection.study, verdicts, figures) if collection.study else {}
    if facts_:
        write_atomically(to / VERDICTS_FILE, json.dumps(facts_, indent=1, ensure_ascii=False).encode())
    return Built(
        path=to / "report.html",
        verdicts=verdicts,
        figures=tuple(figure.drawn.name for figure in figures),
        unfinished=collection.unfinished,
        runs=len(collection.runs),
        failed=(*collection.failed.values(), *dict.fromkeys(_line(one) for one in found.missing if "failed" in one)),
        notes=(
            *collection.apart,
            *filter(None, [found.prepared.mixed]),
            *collection.edited,
            *collection.unanswered,
            *collection.damage,
        ),
        facts=facts_,
        ranking=ranked,
    )


def _facts(
    collection: Collection, study: Study, verdicts: Sequence[Verdict], figures: Sequence[Written]
) -> dict[str, Any]:
    """What `verdicts.json` has. Its minutes are those of training on two workers."""
    run_s = sum(float(run.status.get("timing", {}).get("run_s", 0.0)) for run in collection.runs)
    return {
        "study": study.name,
        "title": study.title,
        "bnlab": list(page.known(collection.runs, "bnlab")),
        "seeds": sorted({run.seed for run in collection.runs}),
        "runs": len(collection.runs),
        "minutes": float(f"{run_s / 120:.2g}"),
        "figure": figures[0].drawn.name if figures else None,
        "figures": {figure.drawn.name: figure.drawn.alt for figure in figures},
        "claims": {verdict.claim.name: facts(verdict) for verdict in verdicts},
    }


def facts_of(root: Path, plugins: Sequence[str] = ()) -> Mapping[str, Any]:
    """What `verdicts.json` of a study has. Its report is built first, if there is none, or if a run ended or a net
    answered after it.

    Raises:
        NoRunsError: no run has ended.
        UsageError: a study.yaml that is not a study.
    """
    file = root / VERDICTS_FILE
    results = (path for name in ("status.json", "answers.jsonl") for path in root.glob(f"*/*/*/{name}"))
    changed = max(path.stat().st_mtime_ns for path in (root / STUDY_FILE, *results))
    with contextlib.suppress(OSError, ValueError):
        found = safe_json(file.read_bytes())
        if file.stat().st_mtime_ns >= changed and _is_whole(found):
            return found
    return build(root, plugins).facts


def _is_whole(found: Mapping[str, Any]) -> bool:
    """Whether verdicts.json has what a gallery shows, and names of files for figures."""
    figures, claims = found.get("figures"), found.get("claims")
    if (
        not isinstance(figures, dict)
        or not isinstance(claims, dict)
        or not isinstance(found.get("minutes"), float | int)
    ):
        return False
    decided = all(isinstance(claim, dict) and claim.get("decision") in SIGNS for claim in claims.values())
    return decided and all(name == Path(name).name for name in figures)


def _line(out: Mapping[str, str]) -> str:
    return f"figure={out['failed']}: cannot be drawn, {out['why']}"


def draw_all(prepared: Prepared, shape: Format | None = None) -> tuple[list[Written], list[dict[str, str]]]:
    """Every figure that the runs have the numbers for, of the verdicts, of the study and of every view, and why the
    others are left out; with `failed`, the figure's name, where the reason is an error."""
    found: list[Written] = []
    missing: list[dict[str, str]] = []
    with styled(shape):
        for entry, subject, draw in _drawings(prepared):
            try:
                found.append(written(draw()))
            except Exception as error:  # one figure must not cost the verdicts and the others
                if isinstance(error, Missing):
                    missing.append({"subject": subject, "why": str(error), "remedy": error.remedy})
                else:
                    missing.append({"subject": subject, "why": cause(error), "remedy": "", "failed": entry})
    return found, missing


def _drawings(prepared: Prepared) -> Iterator[tuple[str, str, Callable[[], Drawn]]]:
    """The name, the subject and the drawing of every figure, in the order of the report."""
    if prepared.verdicts:
        for entry in in_order("verdicts"):
            yield entry.name, entry.subject, partial(entry.constructor, prepared.verdicts, entry.name)
    taken: set[str] = set()
    for place, asked in enumerate(prepared.asked):
        words = [asked.options.get("metric"), (asked.options.get("options") or {}).get("of"), asked.options.get("of")]
        words += [str(asked.options.get(key, "")).rpartition(".")[2] for key in ("by", "versus")]
        name = "-".join([asked.kind, *(str(word) for word in words if word)])
        name = name if name not in taken else f"{name}-{place}"
        taken.add(name)
        if not asked.views:
            yield asked.kind, name, partial(_nothing_there, place)
        for number, view in enumerate(asked.views):
            subject = ": ".join(filter(None, (view.setting, name)))
            yield asked.kind, subject, partial(_ask, asked, place, view, named(name, view, number))
    for number, view in enumerate(prepared.views):
        for entry in in_order():
            subject = ": ".join(filter(None, (view.setting, entry.subject)))
            yield entry.name, subject, partial(entry.constructor, view, named(entry.name, view, number))


def _ask(asked: Asked, place: int, view: View, name: str) -> Drawn:
    options = options_of(asked.kind, asked.options, f"figures.{place}")
    drawn: Drawn = FIGURES[asked.kind].constructor(view, name, **options)
    return drawn


def _nothing_there(place: int) -> Drawn:
    raise Missing(f"no run is as figures.{place}.where says")


def named(name: str, view: View, number: int) -> str:
    """`drift`, and of a further view `drift-depth-20`: the name of a file."""
    name = re.sub(r"[^\w.,+=-]", "-", name)
    if not view.setting:
        return name
    words = "".join(c if c.isalnum() or c in "." else "-" for c in view.setting.replace(",", ""))
    return f"{name}-{words or number}"


def _nothing(root: Path) -> NoRunsError:
    return NoRunsError("RUNS", "no run has ended yet", str(root), "Wait, or see: bnlab runs " + str(root))


def _has_ended(folder: Path) -> bool:
    return bool(read_runs(folder).runs)


def figure(path: Path | str, name: str, plugins: Sequence[str] = ()) -> Figure:
    """The figure of that name from the report of `path`; a notebook shows it.

    >>> bnlab.figure("runs/quickstart", "loss_by_rate").savefig("loss.pdf")  # doctest: +SKIP

    Raises:
        NoRunsError: no run has ended.
        UsageError: the report has no such figure.
    """
    found = {one.drawn.name: one for one in drawn_from(Path(path), plugins).figures}
    if name not in found:
        raise UsageError("figure", "the report of these runs has no such figure", name, nearest(name, found))
    shown: Any = found[name].drawn.figure
    shown._repr_png_ = lambda: _png(shown)  # IPython looks for it; matplotlib's own figures need pyplot for that
    return shown  # type: ignore[no-any-return]


def _png(shown: Figure) -> bytes:
    out = io.BytesIO()
    with styled():  # hinted text, matplotlib's default, is wider than the footnote's lines were measured
        shown.savefig(out, format="png", dpi=120)
    return out.getvalue()
