"""Data set of a command: its kind, recognised or named, and the lists that lie in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.api.arguments import PathLike
from gmtool.errors import UsageError

OWN_FILES = {"data.classes": "classes.json", "data.labeled": "labeled.txt", "data.val": "val.txt"}
"""Files of a data set's folder that are taken by themselves, by the setting that names them."""


@dataclass(frozen=True)
class DataSet:
    """Kind and folder of a data set."""

    kind: str
    root: PathLike | None
    recognized: str
    """What the kind was recognised by; empty if it was named."""

    def own_files(self) -> dict[str, str]:
        """Return settings that name the classes and lists which lie in a recognised folder.

        A `val.txt` beside a folder of validation images is not taken.
        """
        from gmtool.data.recognize import own_file

        if not self.recognized:
            return {}
        found = {setting: own_file(self.root, name) for setting, name in OWN_FILES.items()}
        if self.kind != "folder" or (Path(self.root or ".") / "images" / "val").is_dir():
            found["data.val"] = None
        return {setting: str(path) for setting, path in found.items() if path is not None}


def find_data_set(kind: str | None, data: PathLike | None, *, command: str) -> DataSet:
    """Return the data set that a command names by its folder or by its kind.

    Args:
        kind: Folder of a data set, a kind, or None.
        data: Folder of the data set, of `--data`.
        command: Command, for messages.

    Raises:
        DataError: The folder has no layout that is known.
        UsageError: Neither was given.
    """
    from gmtool_training.recipes.presets import PRESETS

    from gmtool.data.recognize import recognize_kind

    if kind is not None and (kind in PRESETS or data is not None or not Path(kind).is_dir()):
        return DataSet(kind, data, "")
    root = kind if data is None else data
    if root is None:
        raise UsageError(f"{command} what? give the folder of a data set, or a kind: {', '.join(PRESETS)}")
    found, recognized = recognize_kind(Path(root))
    return DataSet(found, root, recognized)
