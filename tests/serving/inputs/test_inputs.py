import io
import json
import os
import shutil
import sys
from pathlib import Path, PurePosixPath

import pytest
from gmtool_serving.inputs.collect import InputImage, collect_images, read_pixels

from gmtool.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def outputs(inputs: list[Path | str], out: Path) -> dict[str, str]:
    """Output by image path."""
    return {str(image.path): str(image.output) for image in collect_images([str(item) for item in inputs], out)}


def test_folders_are_searched_recursively_and_masks_mirror_them(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/a/y.JPEG", "in/a/b/z.png", "in/notes.txt", "in/.hidden.jpg")
    found = outputs([tmp_path / "in"], tmp_path / "out")
    assert sorted(found.values()) == ["a/b/z", "a/y", "x"]


def test_case_09_distinct_outputs(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.jpg", "in/b/x.jpg", "in/x.jpg", "in/x.png", "in/X.JPG")
    found = outputs([tmp_path / "in"], tmp_path / "out")
    assert sorted(found.values()) == ["X.JPG", "a/x", "b/x", "x.jpg", "x.png"]


def test_names_do_not_depend_on_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.jpg", "two/x.jpg")
    forward = outputs([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert forward == outputs([tmp_path / "two", tmp_path / "one"], tmp_path / "out")
    assert sorted(forward.values()) == ["one/x", "two/x"]


def test_globs_and_files(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.jpg", "in/b/y.jpg", "in/b/z.png", "odd.name")
    assert sorted(outputs([f"{tmp_path}/in/**/*.jpg"], tmp_path / "out").values()) == ["a/x", "b/y"]
    assert sorted(outputs([f"{tmp_path}/in/b/*"], tmp_path / "out").values()) == ["y", "z"]
    assert sorted(outputs([f"{tmp_path}/in/*"], tmp_path / "out").values()) == ["a/x", "b/y", "b/z"]
    assert list(outputs([tmp_path / "odd.name"], tmp_path / "out").values()) == ["odd"]


def test_an_image_named_twice_is_done_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg")
    assert len(outputs([tmp_path / "in", tmp_path / "in", tmp_path / "in/x.jpg"], tmp_path / "out")) == 1


def test_case_10_masks_of_an_earlier_run_inside_the_input_folder_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/masks/x.png")
    for inputs in ([tmp_path / "in"], [f"{tmp_path}/in/**/*"]):
        assert list(outputs(list(inputs), tmp_path / "in" / "masks").values()) == ["x"]


def test_case_08_strange_names_are_found(tmp_path: Path) -> None:
    names = ["a b.jpg", "-x.jpg", "100%d.jpg", "[1]*.jpg", "new\nline.jpg", "é.jpg"]
    touch(tmp_path, *(f"in/{name}" for name in names))
    (tmp_path / "in" / os.fsdecode(b"\xff\xfe.jpg")).touch()
    assert len(outputs([tmp_path / "in"], tmp_path / "out")) == 7
    assert list(outputs([tmp_path / "in" / "[1]*.jpg"], tmp_path / "out").values()) == ["[1]*"]


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


def collect(inputs: list[Path | str], out: Path, root: Path | None = None) -> list[InputImage]:
    return collect_images([str(item) for item in inputs], out, root=root)


def test_images_that_still_share_a_name_with_their_suffix_keep_it_too(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/x.png", "in/x.jpg.bmp")
    found = outputs([tmp_path / "in"], tmp_path / "out")
    assert sorted(found.values()) == ["x.jpg", "x.jpg.bmp", "x.png"]


def test_one_file_named_in_two_ways_has_one_output_in_any_order(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/x.jpg")
    inputs: list[Path | str] = [tmp_path / "in", tmp_path / "in/a/x.jpg"]
    assert outputs(inputs, tmp_path / "out") == outputs(inputs[::-1], tmp_path / "out")
    assert list(outputs(inputs, tmp_path / "out").values()) == ["a/x"]


def test_lists_of_spreadsheets_and_of_windows(tmp_path: Path) -> None:
    files = ["sub/a.jpg", "sub/b b.jpg", "sub/c.jpg", "back\\slash.jpg", "# d.jpg", "# e.jpg"]
    touch(tmp_path, *files)
    lines = ["# my images", "# made by find.py", '"sub/a.jpg","masks/a.png"', ' "sub/b b.jpg"', "sub\\c.jpg"]
    lines += ["back\\slash.jpg", "# d.jpg", "# e.jpg\tcats"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    found = [image.path for image in collect([f"@{tmp_path}/list.txt"], tmp_path / "out")]
    assert {path.relative_to(tmp_path).as_posix() for path in found} == set(files)


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_lists_in_files_and_on_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    names = [b"a/x.jpg", b" spaced name.jpg", os.fsencode("é.jpg"), b"\xff\xfe.jpg"]
    content = separator.encode().join([*names, b""])
    (tmp_path / "list.txt").write_bytes(content)
    expected = sorted([tmp_path / os.fsdecode(name) for name in names])
    listed = collect([f"@{tmp_path}/list.txt"], tmp_path / "out")
    assert sorted(image.path for image in listed) == expected
    assert PurePosixPath(os.fsdecode(b"\xff\xfe")) in {image.output for image in listed}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert collect(["-"], tmp_path / "out", root=tmp_path) == listed


def test_case_08_newlines_in_names_survive_a_list_with_nul(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"new\nline.jpg\0b\ttab.jpg\0")
    assert set(outputs([f"@{tmp_path}/list"], tmp_path / "out").values()) == {"new\nline", "b\ttab"}


def test_a_list_from_powershell_and_one_with_mask_column(tmp_path: Path) -> None:
    (tmp_path / "utf16.txt").write_bytes("ä.jpg\r\nb.jpg\r\n".encode("utf-16"))
    assert set(outputs([f"@{tmp_path}/utf16.txt"], tmp_path / "out").values()) == {"ä", "b"}
    (tmp_path / "two.txt").write_text("\ufeffx.jpg\tmasks/x.png\n\n", encoding="utf-8")
    assert set(outputs([f"@{tmp_path}/two.txt"], tmp_path / "out").values()) == {"x"}


def test_case_10_what_a_list_says_stays_inside_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    names = ["../outside/x.jpg", f"{tmp_path}/lists/in/y.jpg", "/etc/z.jpg", "a/../../../../../../../../w.jpg"]
    (tmp_path / "lists" / "l.txt").write_text("\n".join([*names, "a/../b/v.jpg"]))
    found = collect([f"@{tmp_path}/lists/l.txt"], tmp_path / "out")
    by_name = {image.path.name: str(image.output) for image in found}
    inside = str(tmp_path).lstrip("/")
    assert by_name == {
        "x.jpg": f"{inside}/outside/x",
        "y.jpg": "in/y",
        "z.jpg": "etc/z",
        "w.jpg": by_name["w.jpg"],
        "v.jpg": "b/v",
    }
    assert not any(".." in image.output.parts or image.output.is_absolute() for image in found)
    rooted = collect([f"@{tmp_path}/lists/l.txt"], tmp_path / "out", root=tmp_path / "outside" / "deep")
    assert {str(image.output) for image in rooted if image.path.name == "x.jpg"} == {f"{inside}/outside/outside/x"}


def test_case_10_masks_of_an_earlier_run_in_a_list_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/masks/x.png")
    (tmp_path / "list").write_text("in/x.jpg\nin/masks/x.png\nin/masks/deep/y.png\n")
    assert list(outputs([f"@{tmp_path}/list"], tmp_path / "in" / "masks").values()) == ["in/x"]


def test_case_10_images_in_the_output_folder_are_refused_and_not_overwritten(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.png")
    for text in ("in", "in/x.png"):
        with pytest.raises(DataError, match="lies in the output folder: choose another --out"):
            collect([tmp_path / text], tmp_path / "in")
    with pytest.raises(DataError, match="all 1 images lie in the output folder"):
        collect([f"{tmp_path}/in/*.png"], tmp_path / "in")


def test_case_07_links(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/y.jpg", "in/x.jpg")
    inside = tmp_path / "in"
    (inside / "far").symlink_to(tmp_path / "elsewhere")
    (inside / "round").symlink_to(inside)
    (tmp_path / "elsewhere" / "back").symlink_to(inside)
    (inside / "dangling.jpg").symlink_to("nowhere.jpg")
    (inside / "itself.jpg").symlink_to("itself.jpg")
    expected = ["dangling", "far/y", "itself", "x"]
    assert sorted(outputs([inside], tmp_path / "out").values()) == expected
    assert sorted(outputs([f"{inside}/**/*.jpg"], tmp_path / "out").values()) == expected
    for image in collect([inside], tmp_path / "out"):
        if image.path.name in ("dangling.jpg", "itself.jpg"):
            with pytest.raises(DataError, match="cannot be read"):
                read_pixels(image)


def test_hidden_folders_are_left_out_and_an_unreadable_one_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.jpg", "in/.ipynb_checkpoints/x.jpg")
    assert list(outputs([tmp_path / "in"], tmp_path / "out").values()) == ["x"]
    (tmp_path / "in" / "closed").mkdir(mode=0)
    if os.access(tmp_path / "in" / "closed", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
        outputs([tmp_path / "in"], tmp_path / "out")


def test_coco_files_give_names_and_ids(tmp_path: Path) -> None:
    touch(tmp_path, "val2017/000000000009.jpg", "val2017/000000000025.jpg")
    images = [{"id": 25, "file_name": "000000000025.jpg"}, {"id": 9, "file_name": "000000000009.jpg"}]
    annotations = [{"id": 1, "image_id": 9, "category_id": 3, "segmentation": [[0, 0, 1, 1, 1, 0]]}]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(
        json.dumps({"info": {}, "licenses": [{"id": 1}], "images": images, "annotations": annotations})
    )
    found = collect([path], tmp_path / "out")
    assert [(str(image.output), image.coco_id) for image in found] == [("000000000009", 9), ("000000000025", 25)]
    assert all(image.path.is_file() for image in found)
    both = collect([tmp_path / "val2017", path], tmp_path / "out")
    assert [image.coco_id for image in both] == [9, 25]
    shutil.move(tmp_path / "val2017", tmp_path / "moved")
    assert all(image.path.is_file() for image in collect([path], tmp_path / "out", root=tmp_path / "moved"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not a COCO annotation file"),
        ("[1]", 'expected a list "images"'),
        ('{"images": [{"id": 1}]}', "no id or no file_name"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "a and b have the same id 1"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}', "1 and 2 have the same file"),
    ],
)
def test_damaged_coco_files_are_one_line(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=expected):
        collect([tmp_path / "x.json"], tmp_path / "out")


def test_what_a_list_names_need_not_exist_but_the_list_must(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("missing.jpg\n")
    assert len(collect([f"@{tmp_path}/list"], tmp_path / "out")) == 1
    for text, expected in (("@nowhere", "list nowhere: cannot be read"), (f"@{tmp_path}/empty", "is empty")):
        (tmp_path / "empty").write_text("\n\n")
        with pytest.raises(DataError, match=expected):
            collect([text], tmp_path / "out")


def test_a_benchmarks_list_of_ids_names_images_without_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "JPEGImages/2008_1.jpg", "JPEGImages/v1.0.PNG", "JPEGImages/v1.0.png", "JPEGImages/odd")
    (tmp_path / "test.txt").write_text("2008_1\nv1.0\nodd\nmissing\n")
    found = collect([f"@{tmp_path}/test.txt"], tmp_path / "out", root=tmp_path / "JPEGImages")
    assert [(image.path.name, str(image.output)) for image in found] == [
        ("2008_1.jpg", "2008_1"),
        ("missing", "missing"),
        ("odd", "odd"),
        ("v1.0.png", "v1.0"),
    ]


def test_thousands_of_inputs_without_an_image_are_named_by_three(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.d" for index in range(500)]
    for file in files:
        file.mkdir()
    with pytest.raises(
        DataError, match=r"no images in \S+0\.d, \S+1\.d, \S+2\.d and 497 more: expected files"
    ) as error:
        collect_images([str(file) for file in files], tmp_path / "out")
    assert len(str(error.value)) < 1000
