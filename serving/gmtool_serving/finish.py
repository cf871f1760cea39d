"""What is made once at the end of a run from the files of its images: VOC's archive and COCO's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gmtool_serving.formats import FormatName


def finish(name: FormatName, folder: Path, outputs: Sequence[PurePosixPath]) -> Path | None:
    """Make the file that a format has once a run; return its path, or None where a format has none.

    It holds what lies on disk of `outputs` and nothing else, in the order of their names: a run that is
    repeated, resumed or sharded ends with the same file. Shards that end at the same time may all call it.
    One image is in memory at a time.

    Args:
        name: The format.
        folder: The format's folder, as `format_dirs` gives it.
        outputs: `InputImage.output` of all images of the run, those of all shards. One whose file is not there
            (it failed, or its shard is not done) is left out.
    """
    raise NotImplementedError
