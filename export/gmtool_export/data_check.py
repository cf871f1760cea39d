"""Images that an export needs, looked up before torch is imported and the network loaded, which takes long."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifact.runs import CONFIG_NAME
from gmtool.config import DataConfig
from gmtool.data.datasets import Split, load_split
from gmtool.errors import DataError, GmtoolError
from gmtool.settings import load_config
from gmtool_export.int8.calibration import calibration_images, images_of_folder


def check_images(
    run_dir: Path, *, parity: bool, image_dir: Path | None, int8: bool, calibration_dir: Path | None
) -> None:
    """Check that the images of the proof and of the calibration are there.

    Args:
        run_dir: Run folder.
        parity: Images are needed for the comparison with PyTorch.
        image_dir: Images of `--images`; None for the run's validation images.
        int8: Images are needed for the calibration.
        calibration_dir: Images of `--calibration`; None for the run's training images.

    Raises:
        DataError: They are not.
    """
    config = load_config(run_dir / CONFIG_NAME).data
    if parity and image_dir is not None:
        images_of_folder(image_dir, option="--images")
    elif parity:
        require_validation(config)
    if int8:
        calibration_images(calibration_dir, config)


def validation(config: DataConfig) -> tuple[Split | None, str | None]:
    """Return the run's validation split, or the error why it cannot be loaded."""
    try:
        return load_split(config, "val", config.val), None
    except GmtoolError as error:
        return None, str(error)


def require_validation(config: DataConfig) -> Split:
    """Return the run's validation split.

    Raises:
        DataError: It cannot be loaded.
    """
    split, problem = validation(config)
    if split is None:
        raise DataError(
            f"the run's validation images are needed to prove the model ({problem}): or give --images DIR"
        )
    return split
