"""Options whose value may be left out, `--ray` for `--ray=auto`: Typer has none beside flags."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

LONE = {"--ray": "auto"}
"""What an option means that is the last word or stands before another option."""


class LoneOptionsCommand(TyperCommand):
    """A command with options of `LONE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give lone options their value, and parse."""
        return super().parse_args(ctx, completed(args))


def completed(args: list[str]) -> list[str]:
    """Return arguments in which each option has its value."""
    plain = args.index("--") if "--" in args else len(args)
    given = []
    for place, word in enumerate(args):
        after = args[place + 1 : place + 2]
        lone = place < plain and word in LONE and (not after or (after[0].startswith("-") and after[0] != "-"))
        given.append(f"{word}={LONE[word]}" if lone else word)
    return given
