"""One deep check in this process: `python -m gmtool.doctor.deep.child CHECK FOLDER PLACE CARDS`.

What libraries print goes to stdout and stderr; the result is written to a JSON file in the folder.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from gmtool.doctor.deep.result import Checked, LeftOutError, Place, Setting
from gmtool.doctor.deep.run import CHECKS, Check
from gmtool.errors import GmtoolError, MissingExtraError
from gmtool.files import write_atomically


def make_check(check: Check, setting: Setting) -> dict[str, Any]:
    """Make a check; return state, text, what was left out, and figures."""
    arguments = () if check.variant is None else (check.variant,)
    try:
        found: Checked = import_module(f"gmtool.doctor.deep.{check.module}").check(setting, *arguments)
    except (LeftOutError, MissingExtraError) as reason:
        return {"check": check.name, "state": "left out", "text": str(reason)}
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("gmtool"):  # a bug of ours, not a package that is not installed
            raise
        return {"check": check.name, "state": "left out", "text": f"{error.name} is not installed"}
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        named = text if isinstance(error, GmtoolError) else f"{type(error).__name__}: {text}"
        return {"check": check.name, "state": "failed", "text": named}
    figures = dict(found.figures)
    return {"check": check.name, "state": "ok", "text": found.text, "left_out": found.left_out, "figures": figures}


def main(name: str, folder: Path, place: Place, cards: int) -> None:
    """Make the check of a name and write its result."""
    (check,) = (check for check in CHECKS if check.name == name)
    answer = make_check(check, Setting(folder, place, cards))
    write_atomically(folder / f"{check.file_stem}.json", json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), cast(Place, sys.argv[3]), int(sys.argv[4]))
