"""Escape names from outside for a terminal, Markdown and spreadsheets; Jinja2 escapes HTML (`report_html`)."""

from __future__ import annotations

import re
import unicodedata

FORMULA_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Signs that begin a formula, and their wide forms, which some spreadsheets take for the same."""


def printable(text: str) -> str:
    r"""Return text of one line that a terminal shows as it is, as `repr` does: `\x1b`, `\n`, `\u202e`.

    A file may be called anything: an escape sequence would colour, move or delete what stands on the terminal, and
    a newline would forge a second message. Bytes that are not UTF-8 become `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    """Return text of several lines in which all but the line ends is as `printable` has it."""
    return "\n".join(map(printable, text.split("\n")))


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too: no markup, HTML, link or other column."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is no markup: img_0001
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", text)  # the beginning of a list


def csv_text(text: str) -> str:
    """Return text that a spreadsheet takes for text: what would begin a formula gets an apostrophe before it."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # spaces: macOS and Japanese names have them


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    return repr(char)[1:-1]
