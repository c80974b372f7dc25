"""Writes docs/statements.md from configs/statements.yaml, the studies and docs/verdicts.json: `make docs`.

`python docs/statements.py RUNS...` first judges the studies in these folders of runs, and keeps their verdicts in
verdicts.json and their first figures in images/studies/. `python docs/statements.py verify` checks the identities of
`bnlab verify` and keeps what came out in identities.json. tests/docs/test_statements.py writes the page again and
compares.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from bnlab.analysis.statistics import LEVEL
from bnlab.config.statements import (
    SIGNS,
    SURE,
    Answer,
    Outcome,
    Statement,
    Verdicts,
    found,
    identities,
    line,
    minutes,
    papers,
    rows,
    sign_of,
    sources,
    statements,
    studies,
    verdicts,
    wrong,
)
from bnlab.core.study import Study
from bnlab.core.text import count, number
from bnlab.report.build import build

HERE = Path(__file__).parent
IMAGES = HERE / "images" / "studies"
WIDTH, MOST_BYTES = 480, 60_000
"""Of a study's thumbnail."""
PERCENT = round(100 * LEVEL)
NOTE = (
    "*Written from the code, [verdicts.json](verdicts.json) and [identities.json](identities.json) by `make docs`;\n"
    "edits here are overwritten.*\n"
)

PAPERS = "Of each claim of the study, as it is written above: ✓ supported, ✕ refuted, ? undecided, – not judged.\n"


# -- verdicts of runs ------------------------------------------------------------------------------


def merge(roots: Iterable[Path]) -> None:
    """Judge the studies below these folders and keep what was found; studies that bnlab does not have are left out."""
    kept, own = verdicts(), studies()
    ours = {*own, *(f"{study.name}-{scale}" for study in own.values() for scale in study.scales)}
    for root in roots:
        built = build(root)
        for part in built.parts or [built]:
            name = part.facts.get("study")
            if name not in ours:
                print(f"left out: {part.path.parent}, no study of bnlab's own")
                continue
            kept[name] = {key: value for key, value in part.facts.items() if key not in ("study", "title", "figures")}
            if figure := part.facts["figure"]:
                IMAGES.mkdir(parents=True, exist_ok=True)
                (IMAGES / f"{name}.png").write_bytes(thumbnail(part.path.parent / "figures" / f"{figure}.png"))
            print(f"{name}: {count(len(part.verdicts), 'verdict')}")
    text = json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda of: f"[{' '.join(of[1].split())}]", text)  # on a line
    (HERE / "verdicts.json").write_text(text + "\n", encoding="utf-8")


def verify() -> None:
    """Keep the lines of `bnlab verify --json`, with errors to two digits."""
    done = subprocess.run([sys.executable, "-m", "bnlab", "verify", "--json"], capture_output=True, check=True)
    found_ = [{key: row[key] for key in ("name", "error", "ok")} for row in json.loads(done.stdout)["identities"]]
    lines = ",\n".join(json.dumps(row | {"error": float(f"{row['error']:.1e}")}) for row in found_)
    (HERE / "identities.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def thumbnail(file: Path) -> bytes:
    """A figure at the width of a thumbnail, with as many colours as its size allows."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    for colours in (128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours).save(out, format="png", optimize=True)
        if out.tell() < MOST_BYTES:
            break
    return out.getvalue()


# -- the page --------------------------------------------------------------------------------------


def page() -> str:
    known, own = verdicts(), studies()
    told = {number_: one for one in statements() if (number_ := one.number)}
    parts = ["# What the notes say, and what came out\n", NOTE, *_top(known), _statements(own, known)]
    parts += ["## Studies\n", "One block a study, with every claim that it makes.\n"]
    parts += [text for name, study in own.items() if study.claims for text in _study(study, told, known)]
    parts += ["## What papers say\n", PAPERS, _papers(own, known)]
    return "\n".join(parts).rstrip() + "\n"


def _top(known: Verdicts) -> Iterator[str]:
    notes = "; ".join(f"{index}, *{title}*" for index, title in sources().items())
    yield (
        f"Three introductions to batch normalization ({notes}) make {len(statements())} statements, here in a\n"
        "newcomer's words, with what bnlab's studies found and the command that shows it.\n"
        f"Claims are judged study by study at {PERCENT} % after Holm's adjustment ([how](claims.md)):\n"
        f"{wrong(known)}.\n"
        "A verdict holds for the nets, data and sizes of its study, which are small, and for one kind of processor.\n"
    )
    yield (
        f"{'; '.join(f'{sign} {words}' for sign, words in SIGNS.items())}.\n"
        "Effects speak for a claim above 1 (ratios, x) or 0; intervals are 95 %. *Depends on the draw*: fewer than\n"
        f"{100 * SURE:.0f} % of other draws of the seeds come to the same verdict. *Identities* are equations\n"
        "and laws that `bnlab verify` checks in seconds; their errors are relative.\n"
        "Minutes were measured, of many studies with other work on the same cores: they are upper bounds.\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns that are empty in every row are left out."""
    rows = list(rows)
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    lines = [[cells[column] for column in kept] for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines) + "\n"


def _statements(own: dict[str, Study], known: Verdicts) -> str:
    cells = []
    for row in rows(own, known, identities()):
        one = row.statement
        cells.append(
            [
                str(one.number),
                f"{one.text} *({', '.join(map(str, one.note))})*",
                "<br>".join(map(_outcome, row.outcomes)),
                "<br>".join(f"`{command}`" for command, _ in row.commands),
                "<br>".join("" if took is None else number(took, 2) for _, took in row.commands),
            ]
        )
    return table(["", "statement", "what came out", "command", "minutes"], cells)


def _outcome(of: Outcome) -> str:
    return f"{of.sign} {of.words}" + (f" [{of.claim or of.study}](#{of.study})" if of.study else "")


def _study(study: Study, told: dict[int, Statement], known: Verdicts) -> Iterator[str]:
    of = known.get(study.name)
    yield f"### {study.name}\n"
    took = minutes(study, known)
    length = f", {number(took, 2)} min on two cores" if took is not None else ""
    yield f"{f'**{study.title}** ' if study.title else ''}`{line(study)}`{length}."
    if of is None:
        yield "Not run.\n"
    elif any(found(study, claim, known) is None for claim in study.claims):
        yield "Run before some of its claims had their present text.\n"
    else:
        yield f"bnlab {', '.join(of['bnlab'])}, {count(of['runs'], 'run')}, seeds {_seeds(of['seeds'])}.\n"
        if of["figure"]:
            yield f"![First figure of the report on {study.name}](images/studies/{study.name}.png)\n"
    for scale in study.scales:
        of = known.get(f"{study.name}-{scale}")
        signs = ", ".join(f"{sign_of(facts)} `{name}`" for name, facts in of["claims"].items()) if of else "not run"
        yield f"At another size, `{line(study)} scale={scale}`: {signs}.\n"
    rows = []
    for claim in study.claims:
        facts_ = found(study, claim, known)
        answer = Answer(study=study, claim=claim, support="agrees", found=facts_)
        arms = f" ({facts_['treated']} against {facts_['control']})" if facts_ and facts_["treated"] else ""
        bears = ", ".join(f"{'for' if said == 'agrees' else 'against'} {key}" for key, said in claim.notes.items())
        repeat = facts_ and facts_["repeat"]
        rows.append(
            [
                f"`{claim.name}`: {claim.text}{arms}",
                bears,
                answer.words if facts_ else "",
                f"**{facts_['decision']}**" if facts_ else "",
                number(facts_["p"], 2) if facts_ and facts_["p"] is not None else "",
                str(facts_["n"]) if facts_ else "",
                number(repeat, 2) if isinstance(repeat, float) else "",
            ]
        )
    yield table(["claim", "statements", "effect", "verdict", "p", "seeds", "same with other seeds"], rows)
    numbers = sorted({int(key) for claim in study.claims for key in claim.notes})
    limits: list[tuple[int | str, str]] = [(key, told[key].does_not_show) for key in numbers]
    limits += [(one.paper, one.does_not_show) for one in papers() if one.study == study.name and one.does_not_show]
    if limits:
        yield "What it does not show:\n"
        yield "\n".join(f"- {text} ({of})" for of, text in limits) + "\n"


def _seeds(seeds: Sequence[int]) -> str:
    """
    >>> _seeds([3, 4, 5]), _seeds([1, 4])
    ('3 to 5', '1, 4')
    """
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _papers(own: dict[str, Study], known: Verdicts) -> str:
    rows = []
    for paper in papers():
        came_out = "<br>".join(_came_out(own[paper.study], known)) if paper.study in own else ""
        rows.append([paper.paper, paper.text, paper.expected, came_out])
    return table(["paper", "says", "expected", "what came out here"], rows)


def _came_out(study: Study, known: Verdicts) -> Iterator[str]:
    for claim in study.claims:
        facts = found(study, claim, known)
        words = Answer(study=study, claim=claim, support="agrees", found=facts).words
        yield f"{sign_of(facts)} {words} [{claim.name}](#{study.name})"


if __name__ == "__main__":
    if sys.argv[1:] == ["verify"]:
        verify()
    elif sys.argv[1:]:
        merge(map(Path, sys.argv[1:]))
    (HERE / "statements.md").write_text(page(), encoding="utf-8")
