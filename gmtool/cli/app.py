"""The command line: one Typer app, one file a command, and one place where an error becomes a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from gmtool import __version__
from gmtool.errors import GmtoolError, TerminatedError
from gmtool.escaping import printable

DEBUG_VARIABLE = "GMTOOL_DEBUG"

COMMANDS = (
    *("demo", "train", "export", "verify", "predict", "evaluate", "serve", "benchmark"),
    *("info", "runs", "doctor", "data", "select", "submit"),
)
"""In the order of the help. Each is a function or, with commands of its own, `app`, in the module of its name."""
GROUPS = ("data", "submit")


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the app with the one command that `arguments` name first, if they do, and else with all."""
    app = typer.Typer(
        name="gmtool",
        help="Semi-supervised semantic segmentation: train, export, predict, evaluate.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich would cost 0.35 s of every start
    )
    app.callback()(_options)
    for name in arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS:
        module = import_module(f"gmtool.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(epilog=getattr(module, "EPILOG", None))(getattr(module, name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gmtool {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
    debug: bool = typer.Option(
        False, "--debug", envvar=DEBUG_VARIABLE, help="Show the traceback of an expected failure too."
    ),
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def run() -> None:
    """Run the command that the program's arguments name, and turn its errors into a line and an exit code."""
    try:
        make_app(sys.argv[1:])()
    except TerminatedError as error:  # as asked: no error
        typer.echo(printable(str(error)), err=True)
        sys.exit(error.exit_code)
    except (GmtoolError, OSError) as error:  # a full disk or a folder without permission is no bug of ours
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        typer.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(error.exit_code if isinstance(error, GmtoolError) else 1)
