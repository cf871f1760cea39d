"""The layout of a data set is told from its folders."""

from pathlib import Path

import pytest

from gmtool.data.recognize import own_file, recognize_kind
from gmtool.errors import DataError


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("JPEGImages/x.jpg", "voc"),
        ("VOCdevkit/VOC2012/JPEGImages/x.jpg", "voc"),
        ("leftImg8bit/train/x.png", "cityscapes"),
        ("annotations/instances_train2017.json", "coco"),
        ("images/train/x.jpg", "folder"),
    ],
)
def test_each_layout_is_recognised_by_its_folders(tmp_path: Path, made: str, kind: str) -> None:
    (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / made).touch()
    assert recognize_kind(tmp_path)[0] == kind


def test_what_is_no_data_set_is_said_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(
        DataError, match=r"no layout recognised in it \(it has holiday.jpg\); expected images/ and masks/"
    ):
        recognize_kind(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        recognize_kind(tmp_path / "nowhere")


def test_a_file_of_the_data_sets_own_is_taken_only_if_it_is_there(tmp_path: Path) -> None:
    assert own_file(tmp_path, "classes.json") is None
    (tmp_path / "classes.json").touch()
    assert own_file(tmp_path, "classes.json") == tmp_path / "classes.json"
