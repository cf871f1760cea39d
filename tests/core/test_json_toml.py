"""Files of JSON and TOML from outside: whatever they hold, a checked value or one error in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from gmtool import json_toml
from gmtool.errors import ArtifactError, DataError, GmtoolError
from gmtool.json_toml import MAX_DEPTH, parse_json, parse_toml, read_json, read_toml, shown, typed


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] = (1, 2)
    kind: Literal["fp32", "fp16"] = "fp32"
    limit: int | None = None
    key: int | str = 0
    flag: bool = False


GOOD = {"name": "x", "inner": {"count": 3, "share": 1}, "sizes": [1, 2], "pair": [3, 4], "limit": None, "key": "a"}


def test_json_becomes_the_dataclass_with_tuples() -> None:
    expected = Outer("x", Inner(3, 1), (1, 2), (3, 4), "fp32", None, "a", False)
    assert typed(Outer, GOOD, where="f") == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inner": {"count": True}}, "inner.count is true; expected a whole number"),
        ({"inner": {"count": 3.0}}, "inner.count is 3.0; expected a whole number"),
        ({"inner": {"count": "3"}}, "inner.count is '3'; expected a whole number"),
        ({"inner": {"count": 3, "share": False}}, "inner.share is false; expected a number"),
        ({"inner": {}}, "inner.count is missing"),
        ({"inner": []}, "inner is []; expected an object"),
        ({"inner": {"count": 1, "shara": 1}}, "unknown key 'inner.shara'; did you mean share?"),
        ({"sizes": [1, "2"]}, "sizes[1] is '2'; expected a whole number"),
        ({"sizes": 1}, "sizes is 1; expected a list"),
        ({"pair": [1]}, "pair has 1 entries; expected 2"),
        ({"kind": "int4"}, "kind is 'int4'; expected fp32 or fp16"),
        ({"limit": True}, "limit is true; expected a whole number"),
        ({"key": None}, "key is null; expected text"),
        ({"flag": 1}, "flag is 1; expected true or false"),
    ],
)
def test_case_48_no_value_passes_for_one_of_another_type(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        typed(Outer, GOOD | changed, where="f.json", error=ArtifactError)
    assert str(error.value) == f"f.json: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
        ('{"a":' * 100 + "1" + "}" * 100, f"nested deeper than {MAX_DEPTH} levels"),
        ('{"a": ' + "1" * 5000 + "}", "a number of thousands of digits"),
        ('{"a": [1, 2, ' + "1" * 93 + "]}", "a whole number of 306 bits"),
        ('{"a": 1e999}', "'a' is inf; expected a finite number"),
        ('{"a": [0.5, -1e999]}', "-inf; expected a finite number"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": Infinity}', "Infinity is not a JSON number"),
        ('{"a": 9223372036854775808}', "a whole number of 64 bits"),
        ("{", "not JSON: Expecting property name"),
        ("", "not JSON: Expecting value"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b'{"\xff": 1}', "not JSON"),
    ],
)
def test_case_48_json_that_cannot_be_used_is_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        parse_json(text, where="f.json", error=ArtifactError)
    assert str(error.value).startswith("f.json: ") and message in str(error.value)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = inf", "'a' is inf; expected a finite number"),
        ("[t]\na = nan", "'a' is nan; expected a finite number"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested deeper than"),
        ("a = " + "1" * 5000, "a number of thousands of digits"),
        ("a = 0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("a =", "not TOML"),
    ],
)
def test_case_48_toml_that_cannot_be_used_is_one_line(text: str, message: str) -> None:
    with pytest.raises(GmtoolError) as error:
        parse_toml(text, where="f.toml")
    assert message in str(error.value)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_numbers_and_names_at_the_limits_are_kept(tmp_path: Path) -> None:
    # A byte that is not UTF-8 in a file name is written as a lone surrogate
    text = '{"a": [9223372036854775807, -9223372036854775807, 1e18, 0.1], "name": "\\udcff"}'
    assert parse_json(text, where="f") == {"a": [2**63 - 1, 1 - 2**63, 1e18, 0.1], "name": "\udcff"}
    path = tmp_path / "f.json"
    path.write_bytes(b"\xef\xbb\xbf" + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert read_json(path) is not None
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(path) == {"a": 1}


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "none", "cannot be read: No such file"),
    ):
        for read in (read_json, read_toml):
            with pytest.raises(DataError, match=message):
                read(path)


def test_case_48_a_file_that_would_not_fit_into_memory_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_toml, "CHECKED_BYTES", 1000)
    path = tmp_path / "f.json"
    path.write_text("[" + "[]," * 10_000 + "[]]")
    monkeypatch.setattr(json_toml, "available_memory", lambda: 2_000_000)
    assert len(read_json(path)) == 10_001
    monkeypatch.setattr(json_toml, "available_memory", lambda: 500_000)  # the text fits, its lists do not
    with pytest.raises(DataError, match="of memory"):
        read_json(path)
    monkeypatch.setattr(json_toml, "available_memory", lambda: 10_000)
    monkeypatch.setattr(json_toml, "parse_json", None)  # the text alone does not fit: nothing is read
    with pytest.raises(DataError, match="of memory"):
        read_json(path)


def test_a_large_configuration_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(DataError, match="expected TOML of at most"):
        read_toml(path)


def test_messages_show_long_values_in_part() -> None:
    assert shown(None) == "null" and shown(True) == "true" and shown("a") == "'a'"
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for value in ("x" * 10**6, list(range(10**6)), nested, {"a": nested}):
        assert len(shown(value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5e-3, 0.1, 1e999, NaN, 12345678901234567890123], "b": {"c": null, "d": [true, "\\u00e9/"]}}',
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        "\ufeff[1.7976931348623157e308, 5e-324, 0.30000000000000004]",
    ],
)
def test_the_fast_parser_gives_the_same_values(text: str) -> None:
    utf_8 = text.encode("utf-8")
    for content in (utf_8,) if text.startswith("\ufeff") else (text, utf_8, text.encode("utf-16")):
        expected = parse_json(content, where="f", any_number=True)
        assert repr(parse_json(content, where="f", any_number=True, of_many=True)) == repr(expected)


@pytest.mark.parametrize("text", ["[1,]", "", "[" * 100 + "]" * 100, '"\x01"', "[" * 5000])
def test_the_fast_parser_refuses_with_the_same_line(text: str) -> None:
    lines = []
    for of_many in (False, True):
        with pytest.raises(DataError) as caught:
            parse_json(text, where="f", any_number=True, of_many=of_many)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


def test_a_bad_number_is_named_among_many_lists() -> None:
    text = "[" + ",".join("[1, 2]" for _ in range(10_000)) + ', {"x": [1, 1e19]}]'
    with pytest.raises(DataError, match=r"f: 1e\+19; expected a finite number"):
        parse_json(text, where="f")
