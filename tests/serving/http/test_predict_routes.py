"""Masks over HTTP are those of `gmtool predict`: formats, failures, tiles, confidence, batches."""

import base64
import email
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import CLASSES, FakeBackend
from gmtool_serving.backends.tiles import Tiling, predict_tiled
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.outputs.formats import FormatName
from gmtool_serving.pipeline.run import PredictOptions, predict_images
from http_service import Running, gradient, png, serving
from PIL import Image
from pycocotools import mask as coco_mask

WITH_CONFIDENCE = FakeBackend(outputs=("mask", "confidence"))
IMAGE = png(gradient())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    backends = {"first": WITH_CONFIDENCE, "plain": FakeBackend(), "tiles": FakeBackend(outputs=("logits",))}
    with serving(backends) as service:
        yield service


def predicted(tmp_path: Path, name: str, content: bytes, format_: FormatName) -> tuple[bytes | None, str | None]:
    """Return the file that `gmtool predict` writes for an image, and its error, without the folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(content)
    options = PredictOptions((format_,), DecodeOptions(max_pixels=4_000_000), workers=0)
    images = collect_images([str(folder / name)], tmp_path / "out")
    (outcome,) = predict_images(WITH_CONFIDENCE, images, tmp_path / "out", options)
    if outcome.failure is not None:
        return None, f"{outcome.failure.code} {outcome.failure.message.replace(f'{folder}/', '')}"
    return (tmp_path / "out" / outcome.outputs[0].path).read_bytes(), None


@pytest.mark.parametrize("format_", ["png", "trainids", "color", "overlay", "coco", "npz"])
def test_each_format_has_the_bytes_of_predict(running: Running, tmp_path: Path, format_: str) -> None:
    expected, _ = predicted(tmp_path, "x.png", IMAGE, "voc" if format_ == "png" else format_)  # type: ignore[arg-type]
    reply = running.client.post_form(f"/v1/predict?format={format_}", {"x.png": IMAGE})
    assert reply.status == 200
    if format_ == "npz":  # the archive holds the time
        ours, theirs = (np.load(io.BytesIO(content)) for content in (reply.body, expected or b""))
        assert all((ours[name] == theirs[name]).all() for name in ("mask", "confidence"))
    else:
        assert reply.body == expected
    raw = running.client.post(f"/v1/predict?format={format_}", IMAGE, Content_Type="image/png")
    assert raw.status == 200 and raw.headers["content-type"] == reply.headers["content-type"]


def one_float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


BAD = {
    "text.jpg": b"no image, no image, no image",
    "page.png": b"<!doctype html><title>x</title>",
    "cut.png": IMAGE[: len(IMAGE) // 2],
    "large.png": png(np.zeros((2001, 2000, 3), np.uint8)),
    "float.tif": one_float_tiff(),
}


@pytest.mark.parametrize("name", BAD)
def test_an_image_that_predict_refuses_gets_422_with_its_code_and_text(
    running: Running, tmp_path: Path, name: str
) -> None:
    _, expected = predicted(tmp_path, name, BAD[name], "voc")
    reply = running.client.post_form("/v1/predict", {name: BAD[name]})
    assert reply.status == 422
    assert f"{reply.code} {reply.json['error']['message']}" == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("image/*;q=0.1, application/json", "application/json"),
        ("image/jpeg", "image/jpeg"),
        ("text/html, image/*", "image/png"),
        ("application/x-npz;q=0.5, image/png;q=0.4", "application/x-npz"),
        ("text/html", None),
        ("image/png;q=0", None),
    ],
)
def test_the_accept_header_chooses_the_format(running: Running, accept: str, expected: str | None) -> None:
    reply = running.client.post("/v1/predict", IMAGE, Accept=accept)
    assert (reply.status, reply.headers["content-type"]) == (
        (406, "application/json") if expected is None else (200, expected)
    )


def test_json_holds_shares_regions_and_confidence(running: Running) -> None:
    value = running.client.post("/v1/predict?format=json&confidence=true", IMAGE).json
    prediction = WITH_CONFIDENCE.predict(gradient()[None])
    assert (value["width"], value["height"], value["image"]) == (36, 24, "image")
    assert prediction.confidence is not None
    labels = np.full((24, 36), 255, np.uint8)
    for region in value["classes"]:
        inside = coco_mask.decode(region["rle"]).astype(bool)
        assert region["pixels"] == inside.sum() and region["share"] == pytest.approx(inside.mean())
        assert region["confidence"] == pytest.approx(prediction.confidence[0][inside].mean() / 255)
        labels[inside] = region["index"]
    np.testing.assert_array_equal(labels, prediction.mask[0])
    confidence = np.asarray(Image.open(io.BytesIO(base64.b64decode(value["confidence"]["base64"]))))
    np.testing.assert_array_equal(confidence, prediction.confidence[0])
    assert [region["name"] for region in value["classes"]] == ["dark", "middle", "bright"]
    assert sum(region["share"] for region in value["classes"]) == pytest.approx(1)


def test_a_remark_on_how_an_image_was_read_is_a_header_and_in_json(running: Running) -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(gradient(8, 8)), Image.fromarray(255 - gradient(8, 8))]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    expected = "x.gif: the first of several frames was taken"
    reply = running.client.post_form("/v1/predict", {"x.gif": buffer.getvalue()})
    assert (reply.status, reply.headers["x-gmtool-warning"]) == (200, expected)
    assert running.client.post_form("/v1/predict?format=json", {"x.gif": buffer.getvalue()}).json["warnings"] == [
        expected
    ]
    assert running.client.post_form("/v1/predict", {"ü\u2028.gif": buffer.getvalue()}).status == 200


def test_pixels_below_min_confidence_are_ignored(running: Running) -> None:
    reply = running.client.post("/v1/predict?min_confidence=0.5", IMAGE)
    mask = np.asarray(Image.open(io.BytesIO(reply.body)))
    prediction = WITH_CONFIDENCE.predict(gradient()[None])
    assert prediction.confidence is not None
    expected = np.where(prediction.confidence[0] / 255 < 0.5, CLASSES.ignore_index, prediction.mask[0])
    np.testing.assert_array_equal(mask, expected)
    assert 0 < (mask == 255).mean() < 1
    value = running.client.post("/v1/predict?min_confidence=0.5&format=json", IMAGE).json
    assert value["ignored"]["pixels"] == (mask == 255).sum()


def test_tiles_are_blended_as_by_predict(running: Running) -> None:
    reply = running.client.post("/v1/predict?model=tiles&tile=16x16&overlap=4&format=npz", IMAGE)
    arrays = np.load(io.BytesIO(reply.body))
    expected = predict_tiled(FakeBackend(outputs=("logits",)), gradient(), Tiling(16, 16, 4))
    assert expected.confidence is not None
    np.testing.assert_array_equal(arrays["mask"], expected.mask[0])
    np.testing.assert_array_equal(arrays["confidence"], expected.confidence[0])


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("format=gif", 400, "unknown format 'gif'"),
        ("url=http://example.org/x.png", 400, "unknown parameter 'url'"),
        ("path=/etc/passwd", 400, "unknown parameter 'path'"),
        ("model=none", 404, "no model 'none'"),
        ("min_confidence=2", 400, "min_confidence=2: expected a number from 0 to 1"),
        ("min_confidence=nan", 400, "expected a number from 0 to 1"),
        ("confidence=maybe&format=json", 400, "expected true or false"),
        ("confidence=true&format=png", 400, "format png has no place for it: use json or npz"),
        ("min_confidence=0.5&model=plain", 400, "model plain gives no confidence"),
        ("format=npz&model=plain", 400, "--output mask+confidence"),
        ("format=cityscapes", 400, "Cityscapes' label ids"),
        ("tile=16x16", 400, "model first gives mask, confidence alone"),
        ("tile=wide&model=tiles", 400, "--tile wide"),
        ("overlap=4&model=tiles", 400, "--overlap needs --tile"),
        ("overlap=x&tile=16x16&model=tiles", 400, "overlap=x: expected a number of pixels"),
        ("tile=1x1&model=tiles", 400, "24x36 tiles of 1x1"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_remedy(
    running: Running, query: str, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmtool_serving.http.service.MAX_TILES", 100)
    reply = running.client.post(f"/v1/predict?{query}", IMAGE)
    assert reply.status == status
    assert message in reply.json["error"]["message"]


def test_a_batch_comes_back_as_an_archive_with_a_manifest(running: Running) -> None:
    files = {"a/x.png": IMAGE, "b\\x.png": png(gradient(8, 8)), "../bad.png": b"text"}
    reply = running.client.post_form("/v1/predict-batch", files)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        lines = [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]
        assert [line["status"] for line in lines] == ["ok", "ok", "failed"]
        assert lines[2] == {
            "path": "bad.png",
            "status": "failed",
            "code": "not_an_image",
            "error": "bad.png: not an image (of JPEG, PNG, BMP, WEBP, TIFF, GIF)",
        }
        assert set(archive.namelist()) == {"x.png", "1-x.png", "manifest.jsonl"}
        assert archive.read("x.png") == running.client.post("/v1/predict", IMAGE).body
        assert Image.open(archive.open("1-x.png")).size == (8, 8)


def test_a_batch_comes_back_as_parts_where_the_client_prefers_them(running: Running) -> None:
    reply = running.client.post_form(
        "/v1/predict-batch?format=json", {"x.png": IMAGE, "bad.png": b"text"}, Accept="multipart/mixed"
    )
    message = email.message_from_bytes(f"Content-Type: {reply.headers['content-type']}\n\n".encode() + reply.body)
    good, bad = (json.loads(part.get_payload(decode=True)) for part in message.get_payload())  # type: ignore[arg-type, union-attr]
    assert (good["width"], good["image"]) == (36, "x.png")
    assert bad["error"]["code"] == "not_an_image"


def test_a_batch_without_any_mask_has_the_status_of_its_images(running: Running) -> None:
    assert running.client.post_form("/v1/predict-batch", {"a.png": b"x", "b.png": b"y"}).status == 422


def test_models_tell_their_classes_and_hash_but_no_path(running: Running) -> None:
    listed = running.client.get("/v1/models").json["models"]
    assert [(model["name"], model["confidence"], model["tiles"]) for model in listed] == [
        ("first", True, False), ("plain", False, False), ("tiles", True, True)
    ]  # fmt: skip
    model = running.client.get("/v1/models/first").json
    assert model["classes"]["names"] == list(CLASSES.names)
    assert model["classes"]["palette"] == [list(color) for color in CLASSES.palette]
    assert model["sha256"] == WITH_CONFIDENCE.model_sha256
    assert model["spec"]["input"]["layout"] == "NHWC"
    assert model["formats"] == ["png", "trainids", "color", "overlay", "coco", "npz", "json"]
    assert "npz" not in running.client.get("/v1/models/plain").json["formats"]
    assert WITH_CONFIDENCE.model not in json.dumps(model)
    assert running.client.get("/v1/models/none").status == 404
