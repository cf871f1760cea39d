"""Standard streams that are closed, full or not UTF-8: the work is done and the exit code is that of the work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

LEFT_EARLY = "{{ gmtool {arguments}; echo $? >{code}; }} | true"
PLACES = {
    "no reader of stdout": LEFT_EARLY,
    "no reader of both": LEFT_EARLY.replace("gmtool {arguments}", "gmtool {arguments} 2>&1"),
    "stdout closed": "gmtool {arguments} >&-; echo $? >{code}",
    "stderr closed": "gmtool {arguments} 2>&-; echo $? >{code}",
    "all closed": "gmtool {arguments} <&- >&- 2>&-; echo $? >{code}",
    "stdout full": "gmtool {arguments} >/dev/full; echo $? >{code}",
    "stderr full": "gmtool {arguments} 2>/dev/full; echo $? >{code}",
}
FULL = "error: stdout: No space left on device: what was printed is not complete"


def run(line: str, tmp_path: Path, arguments: Sequence[object], **variables: str) -> tuple[int, str, str]:
    """Run a line of shell with a gmtool in it; return the exit code of that, stdout and stderr."""
    script, code = tmp_path / "gmtool", tmp_path / "code"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gmtool "$@"\n')
    script.chmod(0o755)
    words = " ".join(f"'{word}'" for word in arguments)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["sh", "-c", line.format(arguments=words, code=code)],
        capture_output=True,
        env=environment,
        check=False,
        timeout=120,
    )
    return int(code.read_text()), done.stdout.decode(), done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
@pytest.mark.parametrize("place", PLACES)
def test_case_43_masks_are_done_and_the_exit_code_is_theirs_wherever_the_output_goes(
    toy_data: Path, toy_model: Path, tmp_path: Path, place: str
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    shutil.copy(toy_data / "JPEGImages/toy_00000.jpg", images)
    (images / "bad.jpg").write_text("<html>")
    flags = ["--model", toy_model, "--device", "cpu", "--threads", "1"]
    code, _, err = run(PLACES[place], tmp_path, ["predict", images, "--out", masks, *flags])
    assert code == 3, err
    assert "Traceback" not in err and "Exception" not in err
    assert sorted(path.name for path in masks.iterdir()) == ["manifest.jsonl", "toy_00000.png"]
    assert Image.open(masks / "toy_00000.png").size == Image.open(images / "toy_00000.jpg").size
    assert [json.loads(line) for line in (masks / "manifest.jsonl").read_text().splitlines()]
    if place == "stdout full":
        assert err.splitlines()[-1] == FULL


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_case_43_what_a_command_prints_is_lost_only_where_that_is_an_error(toy_data: Path, tmp_path: Path) -> None:
    arguments = ["info", toy_data / "classes.json", "--json"]
    assert run(PLACES["stdout full"], tmp_path, arguments) == (1, "", FULL + "\n")
    assert run(PLACES["no reader of stdout"], tmp_path, arguments) == (0, "", "")
    assert run(PLACES["stdout closed"], tmp_path, arguments) == (0, "", "")
    for place in ("stderr closed", "stderr full", "no reader of both"):
        assert run(PLACES[place], tmp_path, ["info", tmp_path / "nothing"])[0] == 1


def test_case_43_a_locale_without_utf8_prints_what_it_can(toy_model: Path, tmp_path: Path) -> None:
    images = tmp_path / "Bäume"
    images.mkdir()
    for name in ("straße.png", "日本.png"):
        Image.new("RGB", (20, 10)).save(images / name)
    (images / "schön.jpg").write_text("text")
    flags = ["--model", toy_model, "--device", "cpu", "--threads", "1"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = "gmtool {arguments}; echo $? >{code}"
    code, out, err = run(line, tmp_path, ["predict", images, "--out", tmp_path / "mäsks", *flags], **plain)
    assert code == 3, err
    assert "2 masks in " in out and "failed: " in err and "Traceback" not in err
    assert (out + err).isascii()
    assert sorted(path.name for path in (tmp_path / "mäsks").iterdir()) == [
        "manifest.jsonl",
        "straße.png",
        "日本.png",
    ]
    code, out, err = run(line, tmp_path, ["data", "check", "folder", "--data", images], **plain)
    assert code == 1 and err.startswith("error: "), err
