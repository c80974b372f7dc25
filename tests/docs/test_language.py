"""Plain technical English: phrases that no reader should stumble over stay out of code, configs and pages."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = [
    r"anew",
    r"(is|are|was|were) told",
    r"at work",
    r"as ever",
    r"by dozens",
    r"lies below",
    r"(go|goes|went|going) on with",
    r"worth speaking of",
    r"(come|came|comes) to grief",
    r"born deaf",
    r"or is no more",
    r"mend it",
    r"(is|are) no number",
    r"which there is not",
    r"the begin of",
    r"hears? of",
    r"as it is told",
    r"what it came to",
    r"to be had",
    r"no such thing as",
    r"in order that",
]
TIC = re.compile(r"\b(" + "|".join(PHRASES).replace(" ", r"[\s#]+") + r")\b", re.I)
"""A phrase may go over the end of a line."""
CODE = sorted((ROOT / "bnlab").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DOCS = [
    file for file in sorted((ROOT / "docs").rglob("*.md")) if file.name != "lab.md" and "decisions" not in file.parts
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *DOCS]


def _words_of_code(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the comments and strings of a module, docstrings among them."""
    text = file.read_text(encoding="utf-8")
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def _found(file: Path, parts: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{line + text[: match.start()].count(chr(10))}: {' '.join(match[0].split())}"
        for line, text in parts
        for match in TIC.finditer(text)
    ]


def test_the_list_finds_what_it_should() -> None:
    assert TIC.search("Mend it.")
    assert TIC.search("runs that nobody is at\n    # work on")
    assert not TIC.search("a renewed network; the norm goes on the layer; a new run")


def test_code_is_in_plain_english() -> None:
    assert [line for file in CODE for line in _found(file, _words_of_code(file))] == []


def test_configs_are_in_plain_english() -> None:
    comments = {file: re.findall(r"#.*", file.read_text(encoding="utf-8")) for file in CONFIGS}
    assert [line for file, texts in comments.items() for line in _found(file, iter([(1, "\n".join(texts))]))] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_is_in_plain_english(page: Path) -> None:
    assert _found(page, iter([(1, page.read_text(encoding="utf-8"))])) == []
