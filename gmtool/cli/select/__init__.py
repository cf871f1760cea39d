"""`gmtool select`: the images to label next."""

from __future__ import annotations

from gmtool.cli.select.command import EPILOG, select

__all__ = ["EPILOG", "select"]
