"""`bnlab report --gallery`, and the end of `bnlab sweep --all`: one page over the studies below a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.analysis.load import STUDY_FILE, read_study
from bnlab.cli import RUNS
from bnlab.config import config_dirs, own_plugins, statements
from bnlab.core.errors import UsageError
from bnlab.core.study import Study
from bnlab.core.text import command
from bnlab.record.folder import NoRunsError, write_atomically
from bnlab.report import build, page
from bnlab.report.style import dark

FOLDER = "gallery"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The page, the studies on it, and a line for each folder whose study could not be read."""

    path: Path
    studies: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A study that ran: its folder, the command that ran it, and what its `verdicts.json` has."""

    study: Study
    folder: Path
    line: str
    facts: Mapping[str, Any]


def gallery(root: Path, config_dir: Path | None) -> Gallery:
    """Write `root/gallery/`: index.html, and for each study below `root` that ran its report and two figures. Links are
    relative, so that the folder can be moved.

    Raises:
        NoRunsError: no study here has an ended run.
        UsageError: `root` is itself a study, or has a study named gallery.
    """
    for folder, what in ((root, "is a study itself"), (root / FOLDER, "is a study, where the page would be")):
        if (folder / STUDY_FILE).is_file():
            raise UsageError("--gallery", what, str(folder), "Give the folder above the studies.")
    shown, failed = _shown(root, own_plugins(config_dir))
    if not shown:
        first = command("bnlab", "sweep", "--config", "quickstart", runs=root if root != RUNS else None)
        remedy = failed[0] if failed else f"Run one: {first}"
        raise NoRunsError("--gallery", "no study here has an ended run", str(root), remedy)
    of = statements.studies(config_dirs(config_dir))
    left = [study for name, study in of.items() if name not in shown and study.claims]
    of = dict(sorted({**of, **{name: one.study for name, one in shown.items()}}.items()))
    known = {name: one.facts for name, one in shown.items()}
    content = page.gallery(
        rows=statements.rows(of, known, statements.identities()),
        papers=statements.papers(),
        sources=statements.sources(),
        wrong=statements.wrong(known),
        words=page.counted(claim["decision"] for facts in known.values() for claim in facts["claims"].values()),
        cards={name: _card(one, root / FOLDER) for name, one in shown.items()},
        left=[(one.name, one.title or one.claims[0].text, statements.line(one), one.minutes) for one in left],
        minutes=sum(one.minutes or 0.0 for one in left),
        signs=statements.SIGNS,
        kinds=dict(zip(statements.SIGNS, ("good", "bad", "open", "none"), strict=True)),
    )
    write_atomically(root / FOLDER / "index.html", content.encode())
    return Gallery(path=root / FOLDER / "index.html", studies=tuple(shown), failed=tuple(failed))


def if_any(root: Path, config_dir: Path | None) -> Gallery | None:
    """The same; None where no run has ended."""
    try:
        return gallery(root, config_dir)
    except NoRunsError:
        return None


def _shown(root: Path, plugins: Sequence[str]) -> tuple[dict[str, Shown], list[str]]:
    """The studies below `root` with at least one ended run, by name; a line for each that cannot be read."""
    found, failed = {}, []
    for file in sorted([*root.glob(f"*/{STUDY_FILE}"), *root.glob(f"*/*/{STUDY_FILE}")]):  # lessons/NAME
        try:
            study, provenance = read_study(file)
            assert study is not None
            line = str(provenance.get("line") or statements.line(study))
            known = build.facts_of(file.parent, plugins)
            found[study.name] = Shown(study=study, folder=file.parent, line=line, facts=known)
        except NoRunsError:
            continue
        except UsageError as error:
            failed.append(str(error))
    return found, failed


def _card(one: Shown, folder: Path) -> dict[str, Any]:
    """Of a study; its report and figures are copied below `folder`."""
    name, claims = one.study.name, one.facts["claims"]
    files = {f"{name}/report.html": (one.folder / "report.html").read_bytes()}
    for table in (one.folder / "figures").glob("*.csv"):
        if table.stat().st_size > page.EMBEDDED:  # of a figure whose numbers are not in the report itself
            files[f"{name}/figures/{table.name}"] = table.read_bytes()
    figures = []
    for figure, alt in _main(one.facts["figures"]):
        light = (one.folder / "figures" / f"{figure}.svg").read_text(encoding="utf-8")
        places = f"{name}/figures/{figure}.svg", f"{name}/figures/{figure}-dark.svg"
        files |= dict(zip(places, (light.encode(), dark(light).encode()), strict=True))
        figures.append((*places, alt))
    (folder / name / "figures").mkdir(parents=True, exist_ok=True)
    for place, content in files.items():
        write_atomically(folder / place, content)
    answers = [
        statements.Answer(study=one.study, claim=claim, support="agrees", found=claims.get(claim.name))
        for claim in one.study.claims
    ]
    return {
        "title": one.study.title or name,
        "figures": figures,
        "words": page.counted(claim["decision"] for claim in claims.values()),
        "claims": [(*page.counted([of.found["decision"]])[0][:2], of) for of in answers if of.found],
        "minutes": one.facts["minutes"],
        "line": one.line,
    }


def _main(figures: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and text of the forest plot, and of the first figure that is another."""
    yield from ((name, alt) for name, alt in figures.items() if name == "forest")
    yield from [(name, alt) for name, alt in figures.items() if name != "forest"][:1]
