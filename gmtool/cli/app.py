"""The command line: one Typer app, one file a command, and one place where an error becomes a line."""

from __future__ import annotations

import os
import sys

import typer

from gmtool import __version__
from gmtool.cli.benchmark import benchmark
from gmtool.cli.data import app as data_app
from gmtool.cli.demo import demo
from gmtool.cli.doctor import doctor
from gmtool.cli.early import begin_early
from gmtool.cli.evaluate import evaluate
from gmtool.cli.export import export
from gmtool.cli.info import info
from gmtool.cli.lone import LoneOptionsCommand
from gmtool.cli.predict import predict
from gmtool.cli.submit import app as submit_app
from gmtool.cli.train import train
from gmtool.errors import GmtoolError

DEBUG_VARIABLE = "GMTOOL_DEBUG"

app = typer.Typer(
    name="gmtool",
    help="Semi-supervised semantic segmentation: train, export, predict, evaluate.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would cost 0.35 s of every start
)
app.add_typer(data_app, name="data")
app.add_typer(submit_app, name="submit")
for command in (demo, train, export, evaluate, benchmark, info, doctor):
    app.command()(command)
app.command(cls=LoneOptionsCommand)(predict)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gmtool {__version__}")
        raise typer.Exit


@app.callback()
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


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 usage, 3 some images failed, 130 or 143 stopped."""
    begin_early(sys.argv[1:])
    try:
        app()
    except (GmtoolError, OSError) as error:  # a full disk or a folder without permission is no bug of ours
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, GmtoolError) else 1)
