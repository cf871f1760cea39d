"""Read and check external JSON and TOML: specs, classes, annotations, reports, settings.

The result is a checked value or one `GmtoolError`. Refused: files that are not regular, need more memory than is
available, are nested too deeply, or hold numbers beyond 64 bits, NaN or infinity. `typed` checks types strictly.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
import sys
import tomllib
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gmtool.errors import DataError, GmtoolError, did_you_mean
from gmtool.resources import available_memory

MAX_DEPTH = 64
"""Largest nesting depth of lists and objects; gmtool's own files have 6."""
MAX_NUMBER = 2**63 - 1
"""Largest absolute value of a number, which numpy and C libraries still hold."""
MAX_TOML_BYTES = 1 << 20
"""Largest TOML file in bytes: a `config.toml` has 4 kB, and Python's parser takes seconds for a megabyte."""
CHECKED_BYTES = 1 << 24
"""File size in bytes from which the memory of its values is checked."""
AT_ONCE = 4096
"""Lists and objects whose items are checked at once."""

T = TypeVar("T")

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 60
_shorten.maxlevel = 2


def shown(value: Any) -> str:
    """Return a value as text for an error message: one line, at most about 60 characters a part."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else _shorten.repr(value)


def read_json(
    path: Path,
    *,
    error: type[GmtoolError] = DataError,
    what: str = "JSON",
    any_number: bool = False,
    of_many: bool = False,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """Return the value of a JSON file in UTF-8 (with or without byte order mark) or UTF-16; see `parse_json`."""
    content = _read_regular_file(path, error=error, what=what)
    return parse_json(
        content,
        where=str(path),
        error=error,
        what=what,
        any_number=any_number,
        of_many=of_many,
        object_hook=object_hook,
        parse_float=parse_float,
    )


def parse_json(
    content: bytes | str,
    *,
    where: str,
    error: type[GmtoolError] = DataError,
    what: str = "JSON",
    any_number: bool = False,
    of_many: bool = False,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """Return the value of a JSON text.

    Args:
        content: JSON text.
        where: Name of the file, for messages.
        error: Type of the error to raise.
        what: Expected content, for messages.
        any_number: Accept NaN, infinity and whole numbers beyond 64 bits; the caller checks the numbers it uses.
        of_many: One of hundreds of texts: use a parser that is three times as fast, but takes 0.05 s to import.
            Needs `any_number`, and takes neither of the next two.
        object_hook: Argument of `json.loads`.
        parse_float: Argument of `json.loads`.

    Raises:
        GmtoolError: Not JSON, nested deeper than `MAX_DEPTH`, with a number beyond `MAX_NUMBER`, NaN or infinity,
            or values that do not fit into memory.
    """
    if len(content) >= CHECKED_BYTES:
        _refuse_too_many_values(content, where=where, error=error)

    def parse() -> Any:
        if of_many:
            from pydantic_core import from_json

            with contextlib.suppress(ValueError):  # also for UTF-16 and lone surrogates, which json reads
                return from_json(content)
        constant = None if any_number else _refuse_constant
        return json.loads(content, object_hook=object_hook, parse_float=parse_float, parse_constant=constant)

    return _parse(parse, where, error, f"not {what}", any_number=any_number)


def read_toml(path: Path, *, error: type[GmtoolError] = DataError) -> dict[str, Any]:
    """Return the tables of a TOML file; see `parse_toml`."""
    content = _read_regular_file(path, error=error, what="TOML", max_bytes=MAX_TOML_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not TOML: {problem}") from problem
    return parse_toml(text, where=str(path), error=error)


def parse_toml(text: str, *, where: str, error: type[GmtoolError] = DataError) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        GmtoolError: Not TOML, or refused by `parse_json`.
    """
    tables: dict[str, Any] = _parse(lambda: tomllib.loads(text), where, error, "not TOML")
    return tables


def typed(kind: type[T], value: Any, *, where: str, error: type[GmtoolError] = DataError) -> T:
    """Return a JSON value as `kind`, a dataclass or a type of its fields.

    Types are strict: `true`, `"1"` and 1.0 are not the whole number 1. Lists become tuples if `kind` says so.
    Unknown keys are refused.

    Args:
        kind: A dataclass, `int`, `float`, `str`, `bool`, `Literal`, `tuple`, `dict`, or a union of them and None.
        value: Value from `parse_json`; dataclass instances in it are accepted unchanged.
        where: Name of the file, for messages.
        error: Type of the error to raise.

    Raises:
        GmtoolError: Wrong type, unknown or missing key, or a value that the dataclass refuses.
    """
    try:
        result: T = _typed(kind, value, "")
    except (_MismatchError, GmtoolError) as problem:
        raise error(f"{where}: {problem}") from problem
    return result


def format_version(value: Any, *, newest: int, where: str, what: str, error: type[GmtoolError] = DataError) -> int:
    """Return the `format_version` of a JSON object.

    Raises:
        GmtoolError: Not an object, without `format_version`, or above `newest` (written by a newer gmtool).
    """
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is not int:
        raise error(f"{where} is not {what}, or damaged: expected an object with a whole number format_version")
    if version > newest:
        raise error(f"{where} has format {version}; this gmtool reads up to {newest}: update it")
    return version


# Not pydantic: its import takes 0.3 s, its JSON parser refuses lone surrogates (names that are not UTF-8), and its
# strict mode for parsed values refuses a list for a tuple and an object for a dataclass.
class _MismatchError(Exception):
    """Value of another type than expected."""


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (is_dataclass(kind) and type(value) is kind):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        return _as_dataclass(kind, value, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _as_tuple(arguments, value, name)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item, _below(name, key)) for key, item in value.items()}
    if not _is_plain(kind, value):
        raise _MismatchError(f"{name or 'it'} is {shown(value)}; expected {_named(kind)}")
    return value


def _is_plain(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    return type(value) is kind or (kind is float and type(value) is int)


def _as_tuple(arguments: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(value):
        raise _MismatchError(f"{name or 'it'} has {len(value)} entries; expected {len(kinds)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_typed(kind, item, f"{name}[{place}]") for place, (kind, item) in enumerate(pairs))


def _one_of(options: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in options:
        return None
    wanted = [option for option in options if option is not type(None)]
    for option in wanted[:-1]:
        try:
            return _typed(option, value, name)
        except _MismatchError:
            continue
    return _typed(wanted[-1], value, name)


def _as_dataclass(kind: Any, value: dict[str, Any], name: str) -> Any:
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    unknown = [key for key in value if key not in known]
    if unknown:
        raise _MismatchError(f"unknown key {shown(_below(name, unknown[0]))}{did_you_mean(unknown[0], known)}")
    needed = [key for key, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
    missing = [key for key in needed if key not in value]
    if missing:
        raise _MismatchError(f"{_below(name, missing[0])} is missing")
    return kind(**{key: _typed(hints[key], item, _below(name, key)) for key, item in value.items()})


def _named(kind: Any) -> str:
    """Return the name of a type in messages."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list"}
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return names.get(get_origin(kind) or kind, "an object")


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _read_regular_file(path: Path, *, error: type[GmtoolError], what: str, max_bytes: int = sys.maxsize) -> bytes:
    """Return the content of a regular file; pipes are refused without blocking, and files larger than memory."""
    try:
        # O_NONBLOCK: do not wait for the writer of a named pipe. O_BINARY: Windows only
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path}: not a regular file; expected {what}")
            if status.st_size > max_bytes:
                raise error(f"{path} has {status.st_size} bytes; expected {what} of at most {max_bytes}")
            if status.st_size >= CHECKED_BYTES:
                _refuse_beyond_memory(status.st_size, where=str(path), error=error)
            return file.read()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def _parse(
    parse: Callable[[], Any], where: str, error: type[GmtoolError], not_this: str, *, any_number: bool = False
) -> Any:
    try:
        value = parse()
    except RecursionError as problem:
        raise error(f"{where}: lists or objects nested deeper than {MAX_DEPTH} levels") from problem
    except MemoryError as problem:
        raise error(f"{where}: does not fit into memory") from problem
    except ValueError as problem:
        if "limit" in str(problem) and "digits" in str(problem):  # Python's own message names its internals
            raise error(f"{where}: a number of thousands of digits; expected at most 19") from problem
        raise error(f"{where}: {not_this}: {str(problem).splitlines()[0]}") from problem
    found = _find_problem(value, any_number=any_number)
    if found is not None:
        raise error(f"{where}: {found}")
    return value


def _find_problem(value: Any, *, any_number: bool) -> str | None:
    """Return the problem of a parsed value, its depth or a number in it; None if it has none."""
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for start in range(0, len(level), AT_ONCE):
            # Fast in C, for many containers at once: annotations hold millions of pairs of numbers
            containers = level[start : start + AT_ONCE]
            if dict in set(map(type, containers)):
                containers = [x.values() if isinstance(x, dict) else x for x in containers]
            items = list(chain.from_iterable(containers))
            kinds = set(map(type, items))
            if not kinds.isdisjoint((list, dict, tuple)):
                deeper += items if kinds <= {list} else [i for i in items if isinstance(i, (list, dict, tuple))]
            if not any_number and not kinds.isdisjoint((int, float)):
                only = items if kinds <= {int, float} else [item for item in items if type(item) in (int, float)]
                if not _all_fit(only):
                    return _bad_number(level)
        if not deeper:
            return None
        level = deeper
    return f"lists or objects nested deeper than {MAX_DEPTH} levels"


def _all_fit(numbers: Iterable[int | float]) -> bool:
    try:
        finite = all(map(math.isfinite, numbers))
    except OverflowError:  # a whole number larger than any float
        return False
    return finite and min(numbers) >= -MAX_NUMBER and max(numbers) <= MAX_NUMBER


def _bad_number(containers: Iterable[Any]) -> str:
    container, key, number = next(
        (container, key, item)
        for container in containers
        for key, item in (container.items() if isinstance(container, dict) else enumerate(container))
        if type(item) in (int, float) and not _all_fit([item])
    )
    text = str(number) if isinstance(number, float) else f"a whole number of {number.bit_length()} bits"
    place = f"{shown(key)} is " if isinstance(container, dict) else ""
    return f"{place}{text}; expected a finite number that 64 bits hold"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_too_many_values(content: bytes | str, *, where: str, error: type[GmtoolError]) -> None:
    """Refuse a text whose values do not fit into memory: a list of empty lists takes 22 times its size."""
    text = len(content) * (1 if content.isascii() else 4)
    # Largest size in CPython 3.11 of an item with its place in a list, and of the rest of its object
    item, texts, list_, object_ = 40, 16, 64, 200
    sizes = {",": item, '"': texts, "[": list_, "{": object_}
    if isinstance(content, str):
        values = sum(content.count(mark) * size for mark, size in sizes.items())
    else:
        values = sum(content.count(mark.encode()) * size for mark, size in sizes.items())
    _refuse_beyond_memory(text + values, where=where, error=error)


def _refuse_beyond_memory(needed: int, *, where: str, error: type[GmtoolError]) -> None:
    available = available_memory()
    if needed > available:
        raise error(
            f"{where}: reading it needs about {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB "
            "are free: split it, or read it on a machine with more memory"
        )
