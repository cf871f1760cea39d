import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gmtool_serving.inputs import video
from gmtool_serving.inputs.collect import collect_images, read_pixels
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, Failure, decode
from gmtool_serving.inputs.video import count_frames, read_frame

from gmtool.errors import DataError, ImageError, MissingExtraError

av = pytest.importorskip("av")

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx", ".ts": "mpeg2video", ".avi": "libx264"}
FRAMES = 120


def make_video(
    path: Path,
    *,
    frames: int = FRAMES,
    rotation: int = 0,
    mirrored: tuple[bool, bool] = (False, False),
    size: tuple[int, int] = (64, 48),
    codec: str | None = None,
) -> Path:
    """Frames whose grey level is twice their number; a white bar stands on top, and a shorter one on the left."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec or CODECS[path.suffix], rate=25)
        width, height = stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        if rotation or any(mirrored):
            stream.set_display_rotation(rotation, *mirrored)
        for index in range(frames):
            pixels = np.full((height, width, 3), 2 * index, dtype=np.uint8)
            pixels[:8] = 255
            pixels[:20, :4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(path: Path, index: int) -> float:
    """The number that the frame itself shows."""
    frame = read_frame(path, index)
    assert frame.shape == (48, 64, 3)
    assert frame.dtype == np.uint8
    return float(frame[20:].mean() / 2)


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_found_by_number_in_any_order(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}")
    assert count_frames(path) == FRAMES
    for index in (0, 1, 7, 119, 3, 4, 118, 60):  # 7 to 119 and back are jumps
        assert number_of(path, index) == pytest.approx(index, abs=1.2)
    with pytest.raises(DataError, match="no frame 120: the video has ended"):
        read_frame(path, 120)
    video.close_video()


def test_frames_are_inputs_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = make_video(tmp_path / "in" / "clip.mkv")
    (tmp_path / "in" / "clip.jpg").touch()
    found = collect_images([f"{tmp_path}/in/*"], tmp_path / "out", stride=50)
    assert [str(image.output) for image in found] == ["clip", "clip_000000", "clip_000050", "clip_000100"]
    assert str(found[2]) == f"{path} frame 50"
    assert read_pixels(found[2])[20:].mean() / 2 == pytest.approx(50, abs=1.2)
    with pytest.raises(DataError, match=r"no images in .*but videos: give them by name \(.*in/\*.mkv"):
        (tmp_path / "in" / "clip.jpg").unlink()
        collect_images([str(tmp_path / "in")], tmp_path / "out")


def test_rotated_videos_are_read_as_they_are_displayed(tmp_path: Path) -> None:
    path = make_video(tmp_path / "turned.mp4", frames=3, rotation=90)  # counter-clockwise: the bar is left
    frame = read_frame(path, 1)
    assert frame.shape == (64, 48, 3)
    assert frame[:, :6].mean() > 240
    assert frame[:, 12:].mean() < 20


@pytest.mark.parametrize("mirrored", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_mirrored_videos_are_read_as_they_are_displayed(
    tmp_path: Path, rotation: int, mirrored: tuple[bool, bool]
) -> None:
    path = make_video(tmp_path / "mirrored.mp4", frames=1, rotation=rotation, mirrored=mirrored)
    expected = np.rot90(read_frame(make_video(tmp_path / "plain.mp4", frames=1), 0), rotation // 90)
    left_right, upside_down = mirrored
    expected = expected[:: -1 if upside_down else 1, :: -1 if left_right else 1]
    np.testing.assert_array_equal(read_frame(path, 0), expected)
    assert not np.array_equal(expected, expected[:, ::-1]) and not np.array_equal(expected, expected[::-1])


def test_colours_of_more_than_8_bits_stay_in_place(tmp_path: Path) -> None:
    """The blue of a ramp of chroma samples, by BT.601's formula; in H.264 they lie on every second column."""
    path, luma, chroma = tmp_path / "deep.mkv", 512, 100 + 50 * np.arange(16)  # of 10 bits
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})  # lossless
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p10le"
        frame = av.VideoFrame(32, 16, "yuv420p10le")
        for plane, values in zip(frame.planes, (np.full(32, luma), chroma, np.full(16, 512)), strict=True):
            rows = np.zeros((plane.height, plane.line_size // 2), dtype="<u2")
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    blue = 1.164 * (luma / 4 - 16) + 2.017 * (chroma / 4 - 128)
    inside = (blue > 0) & (blue < 255)
    assert inside.sum() > 5
    seen = read_frame(path, 0)[8, ::2, 2].astype(float)
    np.testing.assert_allclose(seen[inside], blue[inside], atol=2)  # a fifth of a sample is 5


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, suffix: str) -> None:
    path, limit = make_video(tmp_path / f"clip{suffix}", frames=30), 64 * 48
    assert number_of(path, 1) == pytest.approx(1, abs=1.2)
    assert read_frame(path, 1, max_pixels=limit).shape == (48, 64, 3)
    for index in (0, 2):
        with pytest.raises(ImageError, match=rf"frames of .* pixels; at most {limit - 1} are taken") as error:
            read_frame(path, index, max_pixels=limit - 1)
        assert error.value.code == "too_large"
    assert decode(path, 2, DecodeOptions(max_pixels=limit - 1)) == Failure("too_large", str(error.value))
    assert isinstance(decode(path, 2, DecodeOptions(max_pixels=limit)), Decoded)


def test_a_frame_that_is_larger_than_those_before_it_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    small, path = tmp_path / "small.ts", tmp_path / "grows.ts"
    make_video(small, frames=3)
    make_video(tmp_path / "large.ts", frames=3, size=(1280, 960))
    path.write_bytes(small.read_bytes() + (tmp_path / "large.ts").read_bytes())
    limit = 1_000_000
    assert read_frame(path, 0, max_pixels=limit).shape == (48, 64, 3)
    with pytest.raises(ImageError, match=f"frames of more than {limit} pixels") as error:
        read_frame(path, 5, max_pixels=limit)
    assert error.value.code == "too_large"
    assert read_frame(path, 0, max_pixels=limit).shape == (48, 64, 3)


def test_a_video_that_cannot_be_opened_fails_alone(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", frames=2)
    (tmp_path / "bad.mp4").write_bytes(good.read_bytes()[:600])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://localhost/x.ts\n")
    found = collect_images([f"{tmp_path}/*.mp4"], tmp_path / "out")
    assert [str(image.output) for image in found] == ["bad_000000", "good_000000", "good_000001", "list_000000"]
    for image in (found[0], found[3]):
        with pytest.raises(DataError, match="not a video: Invalid data"):
            read_pixels(image)


def test_damage_inside_is_an_error_and_not_a_wrong_number(tmp_path: Path) -> None:
    path = make_video(tmp_path / "cut.mkv")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    count = count_frames(path)
    assert 20 < count < FRAMES
    assert number_of(path, count - 3) == pytest.approx(count - 3, abs=1.2)
    with pytest.raises(DataError, match="no frame"):
        read_frame(path, FRAMES - 1)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "av.error", None)
    with pytest.raises(MissingExtraError, match=r'reading a video needs av.*pip install "gmtool\[video\]"'):
        collect_images([str(tmp_path / "x.mp4")], tmp_path / "out")


def test_names_that_ffmpeg_would_take_for_something_else(tmp_path: Path) -> None:
    make_video(tmp_path / "plain.mp4", frames=2)
    for name in ("-x%03d.mp4", "concat:a|b.mp4", "n\udcff.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "plain.mp4").read_bytes())
        assert number_of(tmp_path / name, 1) == pytest.approx(1, abs=1.2)
