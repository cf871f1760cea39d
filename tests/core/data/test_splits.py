from pathlib import Path

import pytest

from gmtool.data.splits import SplitEntry, format_split, read_split
from gmtool.errors import DataError

PUBLISHED = {
    "bare ids": ("2007_000032\n", SplitEntry("2007_000032", None, None)),
    "one column": ("JPEGImages/a.jpg\n", SplitEntry("JPEGImages/a", "JPEGImages/a.jpg", None)),
    "two columns": (
        "JPEGImages/a.jpg SegmentationClass/a.png\n",
        SplitEntry("JPEGImages/a", "JPEGImages/a.jpg", "SegmentationClass/a.png"),
    ),
    "leading slash": (
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png",
        SplitEntry("JPEGImages/a", "JPEGImages/a.jpg", "SegmentationClassAug/a.png"),
    ),
    "double slashes": (
        "//JPEGImages//a.jpg\t/SegmentationClass//a.png",
        SplitEntry("JPEGImages/a", "JPEGImages/a.jpg", "SegmentationClass/a.png"),
    ),
    "windows line ends and a byte order mark": ("\ufeffa\r\n\r\n", SplitEntry("a", None, None)),
    "an id with a dot": ("aachen_000000.leftImg", SplitEntry("aachen_000000.leftImg", None, None)),
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_every_published_form_is_read(tmp_path: Path, form: str) -> None:
    text, expected = PUBLISHED[form]
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_split(path) == [expected]


def test_a_written_list_is_read_back_whatever_its_names(tmp_path: Path) -> None:
    names = ["a", "my image 1", "train/b.c", "ü"]
    (tmp_path / "list.txt").write_text(format_split(names), encoding="utf-8")
    assert [entry.name for entry in read_split(tmp_path / "list.txt")] == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("a\nb\na\n", "list.txt:3: a is already on line 1"),
        ("a\tb\tc\n", "list.txt:1: 3 columns"),
        ("../a.jpg\n", "not a path inside the data set"),
    ],
)
def test_a_wrong_list_is_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_split(path)
    assert expected in str(error.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist: expected a text file"):
        read_split(tmp_path / "nowhere.txt")
