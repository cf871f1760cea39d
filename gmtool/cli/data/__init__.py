"""`gmtool data`: one app of the commands on data sets, each in the file of its subject."""

from __future__ import annotations

from gmtool.cli.data.commands import app
from gmtool.cli.data.importing import EPILOG, import_
from gmtool.cli.data.initializing import init
from gmtool.cli.data.splitting import split

__all__ = ["app"]

app.command("import", epilog=EPILOG)(import_)
app.command("split")(split)
app.command("init")(init)
