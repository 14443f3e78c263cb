"""The image path against literal numbers, and against the recorded published path where it is at hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdvla.data.augmentation import (
    LIGHT_AUGMENTATION,
    PUBLISHED_AUGMENTATION,
    Augmentation,
    Factors,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    augment_batch,
    shift,
)
from rdvla.data.images import (
    PUBLISHED,
    TINY,
    ImagePath,
    centre_crop,
    crop_box,
    decode_jpeg,
    jpeg_round_trip,
    resize_lanczos3,
    resize_lanczos3_float,
    to_float,
)
from rdvla.errors import ConfigError, ObservationError

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded reference tensors are not on this machine")
PICTURES = ("agent_osmesa", "wrist_osmesa", "checker", "gradient", "noise")
LIMIT_LEVELS, LIMIT_FRACTION = 1, 4e-4


def difference(found, expected):
    distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    return distance.max(), (distance > 0).mean()


def assert_close(found, expected):
    levels, fraction = difference(found, expected)
    assert levels <= LIMIT_LEVELS
    assert fraction <= LIMIT_FRACTION


@pytest.fixture(scope="module")
def recorded():
    return np.load(GOLDEN / "image" / "golden_image.npz")


@needs_golden
@pytest.mark.parametrize("name", PICTURES)
class TestAgainstPublished:
    def test_jpeg_is_identical(self, recorded, name):
        assert difference(jpeg_round_trip(recorded[f"{name}.input"]), recorded[f"{name}.jpeg_decoded"]) == (0, 0)
        decoded = decode_jpeg(recorded[f"{name}.jpeg_bytes"].tobytes())
        assert difference(decoded, recorded[f"{name}.jpeg_decoded"]) == (0, 0)

    def test_resize(self, recorded, name):
        assert_close(resize_lanczos3(recorded[f"{name}.jpeg_decoded"], 224), recorded[f"{name}.resized_u8"])

    def test_crop(self, recorded, name):
        assert_close(centre_crop(recorded[f"{name}.resized_u8"], 0.9), recorded[f"{name}.crop_u8"])

    def test_whole_path(self, recorded, name):
        assert_close(PUBLISHED.prepare(recorded[f"{name}.input"]), recorded[f"{name}.crop_u8"])


@needs_golden
@pytest.mark.parametrize("name", ["checker", "agent_osmesa"])
def test_float_stages_and_pixel_values(recorded, name):
    resized = resize_lanczos3_float(recorded[f"{name}.jpeg_decoded"], 224)
    np.testing.assert_allclose(resized, recorded[f"{name}.resized_float"], atol=2e-4, rtol=0)
    side = np.sqrt(np.float32(0.9))
    offset = float((1 - side) / 2)
    cropped = crop_box(to_float(recorded[f"{name}.resized_u8"]), offset, offset, float(side))
    np.testing.assert_allclose(cropped, recorded[f"{name}.crop_float"], atol=2e-7, rtol=0)


@needs_golden
def test_augmentation_operations_and_chain():
    recorded = np.load(GOLDEN / "data" / "golden_data.npz")
    p = json.loads((GOLDEN / "data" / "aug_params.json").read_text())
    operations = {
        "crop": lambda image: crop_box(image, p["height_offset"], p["width_offset"], p["side"]),
        "brightness": lambda image: adjust_brightness(image, p["brightness_delta"]),
        "contrast": lambda image: adjust_contrast(image, p["contrast_factor"]),
        "saturation": lambda image: adjust_saturation(image, p["saturation_factor"]),
        "hue": lambda image: adjust_hue(image, p["hue_delta"]),
    }
    start = chain = to_float(recorded["aug.input"])
    for name, operation in operations.items():
        chain = operation(chain)
        alone = operation(start)[::5, ::5]
        np.testing.assert_allclose(alone, recorded[f"aug.solo_{name}[::5,::5]"], atol=1e-6, rtol=0, err_msg=name)
        np.testing.assert_allclose(
            chain[::5, ::5], recorded[f"aug.chain_{name}[::5,::5]"], atol=1e-6, rtol=0, err_msg=name
        )
    factors = Factors(
        side=p["side"],
        top=p["height_offset"],
        left=p["width_offset"],
        brightness=p["brightness_delta"],
        contrast=p["contrast_factor"],
        saturation=p["saturation_factor"],
        hue=p["hue_delta"],
    )
    assert_close(augment(recorded["aug.input"], factors), recorded["aug.output_u8"])


def wave(height=256, width=256):
    """A smooth, colourful picture by formula."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127.5 + 120 * np.sin(0.07 * x + 0.05 * y + c) * np.cos(0.03 * y - 0.02 * c * x) for c in range(3)]
    return np.stack(channels, axis=2).round().astype(np.uint8)


class TestPath:
    def test_published_path_on_a_formula_picture(self):
        pixels = PUBLISHED.prepare(wave())
        assert pixels.shape == (224, 224, 3)
        assert pixels.dtype == np.uint8
        expected = [[212, 245, 167], [208, 150, 50], [61, 102, 44], [80, 183, 92]]
        found = np.array([pixels[0, 0], pixels[17, 3], pixels[100, 200], pixels[223, 223]])
        assert np.abs(found.astype(int) - expected).max() <= 1

    def test_tiny_path_averages_pairs_rounding_each_axis(self):
        image = wave()
        expected = image.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.abs(TINY.prepare(image) - expected).max() <= 1

    def test_an_image_of_the_target_size_is_only_cropped(self):
        image = wave(224, 224)
        assert np.array_equal(PUBLISHED.prepare(image), centre_crop(image, 0.9))
        assert TINY.prepare(wave(128, 128)) is not None

    def test_constant_stays_constant(self):
        image = np.full((300, 200, 3), 77, np.uint8)
        path = ImagePath(size=64, resize="lanczos3", crop_area=0.5)
        assert np.array_equal(path.prepare(image), np.full((64, 64, 3), 77))

    def test_crop_of_everything_is_identity(self):
        image = wave(40, 30)
        assert np.array_equal(centre_crop(image, 1.0), image)

    @pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
    def test_rejects_other_arrays(self, image):
        with pytest.raises(ObservationError, match=r"uint8 \[H, W, 3\]"):
            TINY.prepare(image)

    @pytest.mark.parametrize(
        ("field", "value"), [("size", 0), ("size", 12.5), ("resize", "lanzcos3"), ("jpeg", 1), ("crop_area", 1.5)]
    )
    def test_rejects_other_settings(self, field, value):
        with pytest.raises(ConfigError):
            ImagePath(**{field: value})

    def test_bytes_that_are_no_jpeg(self):
        with pytest.raises(ObservationError, match="not a readable JPEG"):
            decode_jpeg(b"not a picture")

    def test_decoder_differs_from_the_accurate_one(self):
        """The fast DCT is the point: an accurate decoder would not be the published path."""
        buffer = io.BytesIO()
        Image.fromarray(wave()).save(buffer, format="JPEG", quality=95)
        accurate = np.asarray(Image.open(buffer))
        assert np.abs(accurate.astype(int) - decode_jpeg(buffer.getvalue())).max() >= 1


class TestAugmentation:
    def test_shift_repeats_the_edge(self):
        image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        assert shift(image, 1, 0).tolist() == [image[0].tolist(), image[0].tolist()]
        assert shift(image, 0, -1)[:, 0].tolist() == image[:, 1].tolist()

    def test_levels_table_equals_the_float_operations(self):
        image = wave(64, 64)
        table = augment(image, Factors(brightness=0.07, contrast=1.12)).astype(int)
        floats = adjust_contrast(adjust_brightness(to_float(image), 0.07), 1.12)
        assert np.abs(table - np.floor(floats * 255.5)).max() <= 1

    def test_no_factors_no_change(self):
        image = wave(32, 32)
        assert np.array_equal(augment(image, Factors()), image)
        full = augment(image, Factors(saturation=1.0, hue=1e-12))
        assert np.abs(full.astype(int) - image).max() <= 1

    def test_batch_draws_differ_and_repeat_for_a_seed(self):
        batch = np.stack([wave(32, 32)] * 4)
        first = augment_batch(batch, LIGHT_AUGMENTATION, np.random.default_rng(3))
        again = augment_batch(batch, LIGHT_AUGMENTATION, np.random.default_rng(3))
        assert np.array_equal(first, again)
        assert not np.array_equal(first[0], first[1])
        assert np.array_equal(batch[0], wave(32, 32))

    def test_published_draws_stay_in_range(self):
        rng = np.random.default_rng(0)
        draws = [PUBLISHED_AUGMENTATION.sample(rng) for _ in range(500)]
        assert all(draw.top == draw.left for draw in draws)
        assert 0.045 < max(draw.top for draw in draws) <= 1 - np.sqrt(0.9)
        assert 0.045 < max(draw.hue for draw in draws) <= 0.05
        assert 0.8 <= min(draw.contrast for draw in draws) < 0.82

    @pytest.mark.parametrize(("field", "value"), [("crop_area", 0.0), ("shift", -1), ("hue", 2.0)])
    def test_rejects_other_ranges(self, field, value):
        with pytest.raises(ConfigError, match=field):
            Augmentation(**{field: value})
