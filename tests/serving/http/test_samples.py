"""Sample images of the page: of a folder, or of the model's run; only these can be fetched."""

import shutil
from pathlib import Path

import pytest
from fakes import FakeBackend
from gmtool_serving.http.site.samples import samples_of_folder, samples_of_run
from http_service import gradient, png, serving

from gmtool.errors import DataError


def test_samples_are_spread_over_a_folder(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02d}.png").write_bytes(b"x")
    assert [path.name for path in samples_of_folder(tmp_path)] == [
        f"{number:02d}.png" for number in range(0, 12, 2)
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        samples_of_folder(tmp_path / "empty")


def test_samples_of_a_run_are_its_validation_images(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    val = (toy_data / "ImageSets/Segmentation/val.txt").read_text().split()
    assert [path.stem for path in samples_of_run(toy_model)] == val
    assert samples_of_run(Path(shutil.copy(toy_model, tmp_path / "model.onnx"))) == ()


def test_samples_are_fetched_by_their_place_alone(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(png(gradient()))
    with serving({"m": FakeBackend()}, samples=samples_of_folder(tmp_path)) as running:
        assert running.client.get("/v1/samples").json == {"samples": ["a b.png"]}
        assert running.client.get("/v1/samples/0").body == png(gradient())
        for place in ("1", "-1", "00", "a%20b.png", "..%2f..%2fetc%2fpasswd", "%2e%2e"):
            assert running.client.get(f"/v1/samples/{place}").status == 404
        (tmp_path / "a b.png").unlink()
        assert running.client.get("/v1/samples/0").code == "unreadable"
