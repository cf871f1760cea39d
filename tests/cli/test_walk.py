"""From a folder of photos with a few masks to a training run, by doing what each error says."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Cli
from PIL import Image

TINY = [f"--set={name}={value}" for name, value in SMALL.items() if name.startswith(("data.", "model.", "run."))]
TINY += ["--set=run.validations=1", "--recipe", "supervised", "--iterations", "2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos in images/, masks of 0 and 255 for six of them."""
    root = tmp_path / "my photos"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(12):
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[8:30, 4 + index : 24 + index] = 255
        Image.fromarray(np.repeat(mask[..., None] // 2 + 9 * index, 3, axis=2)).save(root / f"images/{index}.jpg")
        if index < 6:
            Image.fromarray(mask).save(root / f"masks/{index}.png")
    return root


def error_of(cli: Cli, line: list[str]) -> str:
    code, _, err = cli(line)
    assert code in (1, 2), err
    (found,) = [text for text in err.splitlines() if text.startswith("error: ")]
    return found


def command_in(text: str, end: str) -> list[str]:
    """Return the words of the command that a message names."""
    match = re.search(rf"gmtool (.*?){end}", text)
    assert match is not None, text
    return shlex.split(match[1])


def test_each_error_names_what_leads_on_until_it_trains(cli: Cli, photos: Path) -> None:
    line = ["train", str(photos)]
    # No classes: another command proposes them; here a person writes them
    error = error_of(cli, line)
    assert command_in(error, " propose") == ["data", "init", str(photos)]
    (photos / "classes.json").write_text(json.dumps({"names": ["ground", "thing"]}))
    # No validation part: a command makes one
    error = error_of(cli, line)
    assert "give --val LIST" in error
    code, out, err = cli(command_in(error, " makes one"))
    assert code == 0 and "5 labeled and 6 unlabeled, 1 validation images" in out, err
    line = shlex.split(err.splitlines()[-1])[1:]
    assert line[:2] == ["train", str(photos)]
    # Masks of 0 and 255: the keys and the setting are in the message
    error = error_of(cli, [*line, *TINY, "--out", str(photos / "run")])
    found = re.search(r'("raw_ids": \[0, 255\], "ignore_index": 254) in classes.json, and (--set \S+)', error)
    assert found is not None, error
    classes = json.loads((photos / "classes.json").read_text()) | json.loads(f"{{{found[1]}}}")
    (photos / "classes.json").write_text(json.dumps(classes))
    line += found[2].split()
    # Now it trains
    code, out, err = cli([*line, *TINY, "--out", str(photos / "run")])
    assert code == 0, err
    assert "5 labeled (" in err and "6 unlabeled (" in err and "1 validation (" in err


def test_data_init_leads_to_the_same_in_one_step(cli: Cli, photos: Path) -> None:
    code, out, err = cli(command_in(error_of(cli, ["data", "check", str(photos)]), " propose"))
    assert code == 0 and "5 labeled, 1 validation and 6 unlabeled images" in out
    settings = [word for word in shlex.split(err.splitlines()[-1]) if word.startswith("data.")]
    # The lists of the folder are taken without being named
    code, out, err = cli(["data", "check", str(photos), "--set", *settings, "--set", "data.crop_px=32"])
    assert code == 0, out + err
    assert "5 labeled, 6 unlabeled, 1 validation" in " ".join(out.split())


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            ["--labels", "nope.txt"],
            "split list nope.txt does not exist: expected a text file with one image a line",
        ),
        (["--set", "optim.iteration=3"], "unknown setting optim.iteration; did you mean optim.iterations?"),
        (["--val", "val.txt"], "does not exist"),
    ],
)
def test_mistyped_options_are_one_line(cli: Cli, photos: Path, extra: list[str], expected: str) -> None:
    (photos / "classes.json").write_text(json.dumps({"names": ["ground", "thing"]}))
    error = error_of(cli, ["train", str(photos), *extra])
    assert expected in error and "Errno" not in error
