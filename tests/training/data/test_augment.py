import math

import numpy as np
import pytest
from gmtool_training.data.crops import CropWindow, crop_image, crop_mask, draw_window
from PIL import Image, ImageFilter

from gmtool.images import MEAN_COLOR


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def window(**changes: object) -> CropWindow:
    values = {"size_px": 16, "scale": 1.0, "center": (30.0, 20.0), "rotation_deg": 0.0, "mirrored": False}
    return CropWindow(**(values | changes))  # type: ignore[arg-type]


def test_without_scale_and_rotation_a_crop_is_a_slice() -> None:
    np.testing.assert_array_equal(crop_image(picture(), window()), picture()[12:28, 22:38])


def test_a_mirrored_crop_is_the_slice_mirrored() -> None:
    np.testing.assert_array_equal(crop_image(picture(), window(mirrored=True)), picture()[12:28, 22:38][:, ::-1])


def test_a_quarter_turn_is_the_slice_turned() -> None:
    turned = crop_image(picture(), window(rotation_deg=90.0))
    # Sines are not exact: a pixel may differ by one
    assert np.abs(turned.astype(int) - np.rot90(picture()[12:28, 22:38])).max() <= 1


def test_scaling_up_is_pillows_bilinear_resize() -> None:
    smooth = np.asarray(Image.fromarray(picture(5, 8)).resize((64, 40), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(smooth).resize((128, 80), Image.Resampling.BILINEAR))
    crop = crop_image(smooth, window(scale=2.0, center=(32.0, 20.0), size_px=40))
    assert np.abs(crop.astype(int) - expected[20:60, 44:84]).max() <= 1


@pytest.mark.parametrize(("scale", "rotation_deg", "mirrored"), [(0.6, 8.0, False), (1.7, -9.0, True)])
def test_image_and_mask_stay_aligned(scale: float, rotation_deg: float, mirrored: bool) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[12:24, 18:34] = 1
    image = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    where = window(scale=scale, rotation_deg=rotation_deg, mirrored=mirrored, size_px=32)
    shown = crop_image(image, where)[:, :, 0] > 127
    labels = crop_mask(mask, where, ignore_index=255)
    inside = labels != 255
    assert (shown[inside] == (labels[inside] == 1)).mean() > 0.98
    assert 0.03 < shown.mean() < 0.9


@pytest.mark.parametrize("seed", range(6))
def test_crops_are_those_of_pillows_affine_transform(seed: int) -> None:
    random = np.random.default_rng(seed)
    rough = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = np.asarray(rough.resize((240, 180), Image.Resampling.BICUBIC))
    mask = (image[:, :, 0] // 64).astype(np.uint8)
    where = draw_window(random, (180, 240), size_px=96, scale=(0.5, 2.0), rotation_deg=10, flip=True)
    shown, labels = crop_image(image, where), crop_mask(mask, where, ignore_index=255)
    expected, expected_labels = pillow_crop(image, where, MEAN_COLOR, bilinear=True), pillow_crop(mask, where, 255)
    assert (labels != expected_labels).mean() < 1e-3
    # Pillow repeats the outermost pixel, OpenCV blends it with what lies outside
    edge = np.asarray(Image.fromarray(expected_labels == 255).filter(ImageFilter.MaxFilter(5)))
    difference = np.abs(shown.astype(int) - expected)[~edge]
    assert difference.max() <= 3
    assert difference.mean() < 0.6


def pillow_crop(
    image: np.ndarray, where: CropWindow, fill: int | tuple[int, ...], *, bilinear: bool = False
) -> np.ndarray:
    """The same crop by another library."""
    angle, mirror, middle = math.radians(where.rotation_deg), -1 if where.mirrored else 1, where.size_px / 2
    cosine, sine = math.cos(angle) / where.scale, math.sin(angle) / where.scale
    x, y = where.center
    return np.asarray(
        Image.fromarray(image).transform(
            (where.size_px, where.size_px),
            Image.Transform.AFFINE,
            (
                mirror * cosine,
                -mirror * sine,
                x - mirror * (cosine - sine) * middle,
                sine,
                cosine,
                y - (sine + cosine) * middle,
            ),
            resample=Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST,
            fillcolor=fill,
        )
    )


def test_an_image_longer_than_opencv_takes_is_cropped() -> None:
    long = np.zeros((20, 40_000, 3), dtype=np.uint8)
    long[:, 39_990] = 200
    crop = crop_image(long, window(center=(39_991.0, 10.0)))
    assert crop[:, 7].min() == 200


def test_outside_of_the_image_is_mean_colour_and_ignored() -> None:
    where = window(center=(30.0, 20.0), size_px=80)
    image, mask = crop_image(picture(), where), crop_mask(np.ones((40, 60), np.uint8), where, ignore_index=255)
    assert tuple(image[0, 0]) == MEAN_COLOR
    assert (mask == 1).sum() == 40 * 60
    assert (mask == 255).sum() == 80 * 80 - 40 * 60
    np.testing.assert_array_equal(image[20:60, 10:70], picture())


def test_drawn_windows_cover_their_ranges_and_lie_inside_where_they_can() -> None:
    random = np.random.default_rng(0)
    windows = [
        draw_window(random, (40, 200), size_px=32, scale=(0.5, 2.0), rotation_deg=10, flip=True)
        for _ in range(500)
    ]
    scales = [drawn.scale for drawn in windows]
    assert 0.5 <= min(scales) < 0.55
    assert 1.95 < max(scales) <= 2.0
    assert 9 < max(abs(drawn.rotation_deg) for drawn in windows) <= 10
    assert 0.4 < np.mean([drawn.mirrored for drawn in windows]) < 0.6
    for drawn in windows:
        reach = 16 / drawn.scale
        assert reach <= drawn.center[0] <= 200 - reach
        if 2 * reach < 40:
            assert reach <= drawn.center[1] <= 40 - reach
        else:
            assert drawn.center[1] == 20


def test_switches_turn_draws_off() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        drawn = draw_window(random, (40, 60), size_px=32, scale=(1.0, 1.0), rotation_deg=0, flip=False)
        assert (drawn.scale, drawn.rotation_deg, drawn.mirrored) == (1.0, 0.0, False)
