"""Sample images that the page of the service offers."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifact.run_config import load_run_config
from gmtool.artifact.runs import run_of_model
from gmtool.data.datasets import load_split
from gmtool.errors import DataError, GmtoolError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import below

MAX_SAMPLES = 6


def samples_of_folder(folder: Path) -> tuple[Path, ...]:
    """Return up to six images of a folder, evenly spaced.

    Raises:
        DataError: The folder cannot be read, or has no image.
    """
    found = [folder / name for name in below(folder, suffixes=IMAGE_SUFFIXES)]
    if not found:
        raise DataError(f"--samples {folder}: no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return _spread(found)


def samples_of_run(model: Path) -> tuple[Path, ...]:
    """Return up to six validation images of a model's run; none if the run or its data are not on this machine."""
    run = run_of_model(model)
    if run is None:
        return ()
    try:
        config = load_run_config(run).data
        return _spread([sample.image_path for sample in load_split(config, "val", config.val).samples])
    except (GmtoolError, OSError):
        return ()


def _spread(paths: list[Path]) -> tuple[Path, ...]:
    count = min(MAX_SAMPLES, len(paths))
    return tuple(paths[index * len(paths) // count] for index in range(count))
