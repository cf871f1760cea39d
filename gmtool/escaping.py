"""Escape external names for a terminal, Markdown and spreadsheets; Jinja2 escapes HTML (`report/html.py`)."""

from __future__ import annotations

import re
import unicodedata

FORMULA_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that begin a formula, with their full-width forms."""


def printable(text: str) -> str:
    r"""Return a line with control characters escaped as by `repr`: `\x1b`, `\n`, `\u202e`.

    In a file name, an escape sequence would change the terminal, and a newline would forge a second message.
    Bytes that are not UTF-8 become `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each escaped by `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def markdown_text(text: str) -> str:
    """Return text escaped for Markdown and its tables: no markup, HTML, link or column."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # not markup inside a word: img_0001
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", text)  # start of a list item


def csv_text(text: str) -> str:
    """Return text escaped for spreadsheets: an apostrophe before a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces of macOS and Japanese names


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogate of a byte that is not UTF-8 in a file name
        return f"\\x{code - 0xDC00:02x}"
    return repr(char)[1:-1]
