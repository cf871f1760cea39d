import os
from pathlib import Path

import pytest
from gmtool_serving.inputs import collect_images

from gmtool.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def outputs(inputs: list[Path | str], out: Path) -> dict[str, str]:
    """Mask name by image path."""
    return {str(image.path): str(image.output) for image in collect_images([str(item) for item in inputs], out)}


def test_folders_are_searched_recursively_and_masks_mirror_them(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/a/y.JPEG", "in/a/b/z.png", "in/notes.txt", "in/.hidden.jpg")
    found = outputs([tmp_path / "in"], tmp_path / "out")
    assert sorted(found.values()) == ["a/b/z.png", "a/y.png", "x.png"]


def test_case_09_distinct_outputs(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.jpg", "in/b/x.jpg", "in/x.jpg", "in/x.png", "in/X.JPG")
    found = outputs([tmp_path / "in"], tmp_path / "out")
    assert sorted(found.values()) == ["X.JPG.png", "a/x.png", "b/x.png", "x.jpg.png", "x.png.png"]


def test_names_do_not_depend_on_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.jpg", "two/x.jpg")
    forward = outputs([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert forward == outputs([tmp_path / "two", tmp_path / "one"], tmp_path / "out")
    assert sorted(forward.values()) == ["one/x.png", "two/x.png"]


def test_globs_and_files(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.jpg", "in/b/y.jpg", "in/b/z.png", "odd.name")
    assert sorted(outputs([f"{tmp_path}/in/**/*.jpg"], tmp_path / "out").values()) == ["a/x.png", "b/y.png"]
    assert sorted(outputs([f"{tmp_path}/in/b/*"], tmp_path / "out").values()) == ["y.png", "z.png"]
    assert sorted(outputs([f"{tmp_path}/in/*"], tmp_path / "out").values()) == ["a/x.png", "b/y.png", "b/z.png"]
    assert list(outputs([tmp_path / "odd.name"], tmp_path / "out").values()) == ["odd.png"]


def test_an_image_named_twice_is_done_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg")
    assert len(outputs([tmp_path / "in", tmp_path / "in", tmp_path / "in/x.jpg"], tmp_path / "out")) == 1


def test_case_10_masks_of_an_earlier_run_inside_the_input_folder_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/masks/x.png")
    for inputs in ([tmp_path / "in"], [f"{tmp_path}/in/**/*"]):
        assert list(outputs(list(inputs), tmp_path / "in" / "masks").values()) == ["x.png"]


def test_case_08_strange_names_are_found(tmp_path: Path) -> None:
    names = ["a b.jpg", "-x.jpg", "100%d.jpg", "[1]*.jpg", "new\nline.jpg", "é.jpg"]
    touch(tmp_path, *(f"in/{name}" for name in names))
    (tmp_path / "in" / os.fsdecode(b"\xff\xfe.jpg")).touch()
    assert len(outputs([tmp_path / "in"], tmp_path / "out")) == 7
    assert list(outputs([tmp_path / "in" / "[1]*.jpg"], tmp_path / "out").values()) == ["[1]*.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("nowhere", "no such file or folder"), ("no*where", "nothing matches"), ("empty", "no images in")],
)
def test_nothing_to_do_is_said(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=expected):
        collect_images([str(tmp_path / text)], tmp_path / "out")


def test_two_images_for_one_mask_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one/in/x.jpg", "two/in/x.jpg")
    with pytest.raises(DataError, match=r"would both become in/x"):
        collect_images([str(tmp_path / "one/in"), str(tmp_path / "two/in")], tmp_path / "out")
