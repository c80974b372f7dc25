"""YAML and JSON that anybody may have written: a plain tree, or one line, at once."""

from __future__ import annotations

import pytest
import yaml

from bnlab.core.safe import MOST_DEPTH, safe_json, safe_yaml

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "an anchor bomb": (BOMB, "line 6: more than 200,000 values"),
    "a long list": ("[" + "1," * 300_000 + "1]", "more than 200,000 values"),
    "deep lists": ("[" * 100_000, "line 1: more than 64 levels in each other"),
    "deep blocks": ("- " * 100_000 + "1", "line 1: more than 64 levels in each other"),
    "deep mappings": ("{a: " * 100_000, "line 1: more than 64 levels in each other"),
    "deep keys": ("? " * 100_000, "line 1: more than 64 levels in each other"),
    "a recursive alias": ("b: 1\na: &a [*a]", r"line 2: \*a is within itself"),
    "a recursive merge": ("a: &a {<<: *a}", r"line 1: \*a is within itself"),
    "an unknown alias": ("a: *b", "line 1: found undefined alias"),
    "a tag of a language": ("!!python/object/apply:os.system [ls]", "the type os.system has no place here"),
    "a set": ("!!set {a, b}", "the type set has no place here"),
    "a binary": ("a: !!binary aGVsbG8=", "the type binary has no place here"),
    "no number": ("a: !!int x", "a number is none, or has more than 64 bits"),
    "no boolean": ("a: !!bool x", "x"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "a number is none, or has more than 64 bits"),
    "not UTF-8": (b"a: \xff\xfe", "is not UTF-8"),
    "half a character": ("a: \ud800", "is not UTF-8"),
    "a control character": ("a: \0", "control characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: but found another document"),
    "a number as a key": ("1: 2", "the key 1 is not a text"),
    "a list as a key": ("? [1]\n: 2", "line 1: found unhashable key"),
    "a bad merge": ("<<: 3", "line 1: expected a mapping or list of mappings"),
    "bad indentation": ("a:\n  - b\n - c", "line 3: "),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_yaml_may_not_say_is_refused_in_one_line(case: str) -> None:
    text, problem = REFUSED[case]
    with pytest.raises(ValueError, match=problem) as caught:
        safe_yaml(text)
    assert "\n" not in str(caught.value)


def test_what_yaml_may_say() -> None:
    assert safe_yaml("a: &a {x: 1}\nb: {<<: *a, y: [null, true, 2.5, t, .inf]}\nc: *a") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": [None, True, 2.5, "t", float("inf")]},
        "c": {"x": 1},
    }
    assert safe_yaml(b"a: 2020-01-01") == {"a": "2020-01-01"}  # a date is a text
    assert safe_yaml("") is None


def test_as_deep_as_it_may_be() -> None:
    levels = MOST_DEPTH - 1
    assert (
        yaml.safe_dump(safe_yaml("[" * levels + "]" * levels), default_flow_style=True)
        == "[" * levels + "]" * levels + "\n"
    )
    with pytest.raises(ValueError, match="more than 64 levels"):
        safe_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH)


@pytest.mark.parametrize(
    "text", [b"[]", b"5", b"null", b'"x"', b"", b"\xff", b'{"a": NaN}', b"[" * 5000, b'{"a":' * 80]
)
def test_what_is_no_json_object_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        safe_json(text)


def test_json_as_deep_as_yaml() -> None:
    assert safe_json(b'{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(ValueError, match="more than 64 levels"):
        safe_json(b'{"a":' * 80 + b"1" + b"}" * 80)
