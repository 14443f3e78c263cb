"""What training does to images: crops, shifts and colour, with explicit factors.

`PUBLISHED_AUGMENTATION` repeats the published pipeline operation by operation (a crop along the diagonal, brightness,
contrast, saturation, hue). `LIGHT_AUGMENTATION` (a small shift, brightness, contrast) is cheap enough for a laptop CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rdvla.data.images import crop_planes, to_float, to_uint8
from rdvla.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """How far each operation may go; 0 (or None) switches it off.

    Attributes:
        crop_area: fraction of the area a random crop keeps; None crops nothing.
        shift: largest shift up, down, left or right, in pixels; the edge is repeated.
        brightness: largest addition to a 0..1 image.
        contrast: factor around the mean of each channel is drawn from 1 - contrast .. 1 + contrast.
        saturation: factor is drawn from 1 - saturation .. 1 + saturation.
        hue: largest rotation of the hue, as a fraction of the circle.

    Raises:
        ConfigError: a value out of range.
    """

    crop_area: float | None = None
    shift: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ConfigError(f"augmentation crop_area must be in (0, 1] or null, found {self.crop_area!r}.")
        if self.shift < 0:
            raise ConfigError(f"augmentation shift must be at least 0 pixels, found {self.shift!r}.")
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augmentation {name} must be in 0..1, found {getattr(self, name)!r}.")

    def sample(self, rng: np.random.Generator) -> "Factors":
        """Draw the factors of one image; the crop keeps equal offsets, so it moves along the diagonal."""
        side = 1.0 if self.crop_area is None else float(np.sqrt(np.float32(self.crop_area)))
        offset = rng.uniform(0.0, 1.0 - side)
        vertical, horizontal = rng.integers(-self.shift, self.shift + 1, size=2)
        return Factors(
            side=side,
            top=offset,
            left=offset,
            vertical=int(vertical),
            horizontal=int(horizontal),
            brightness=rng.uniform(-self.brightness, self.brightness),
            contrast=rng.uniform(1 - self.contrast, 1 + self.contrast),
            saturation=rng.uniform(1 - self.saturation, 1 + self.saturation),
            hue=rng.uniform(-self.hue, self.hue),
        )


PUBLISHED_AUGMENTATION = Augmentation(crop_area=0.9, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
LIGHT_AUGMENTATION = Augmentation(shift=6, brightness=0.1, contrast=0.15)


@dataclass(frozen=True)
class Factors:
    """One draw of an `Augmentation`; the defaults change nothing.

    Attributes:
        side: side of the crop as a fraction of the image.
        top: upper edge of the crop as a fraction of the height.
        left: left edge of the crop as a fraction of the width.
        vertical: shift downwards in pixels.
        horizontal: shift to the right in pixels.
        brightness: added to the 0..1 image.
        contrast: factor around the mean of each channel.
        saturation: factor of the saturation.
        hue: rotation of the hue as a fraction of the circle.
    """

    side: float = 1.0
    top: float = 0.0
    left: float = 0.0
    vertical: int = 0
    horizontal: int = 0
    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    @property
    def only_shifts_and_levels(self) -> bool:
        """Whether a table of 256 levels per channel and a shift say it all."""
        return self.side == 1.0 and self.saturation == 1.0 and self.hue == 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not np.isfinite(getattr(self, entry.name)):
                raise ConfigError(f"augmentation factor {entry.name} must be finite.")


def augment(image_hwc: NDArray[np.uint8], factors: Factors) -> NDArray[np.uint8]:
    """Apply one draw to a uint8 `[h, w, 3]` image; returns a new uint8 `[h, w, 3]` image."""
    if factors.vertical or factors.horizontal or factors.only_shifts_and_levels:
        image_hwc = shift(image_hwc, factors.vertical, factors.horizontal)  # a copy
    if factors.only_shifts_and_levels:
        return _apply_levels(image_hwc, factors.brightness, factors.contrast)
    planes = to_float(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)))
    if factors.side < 1.0:
        planes = crop_planes(planes, factors.top, factors.left, factors.side)
    planes = _brightness(planes, factors.brightness)
    planes = _contrast(planes, factors.contrast)
    planes = _saturation(planes, factors.saturation)
    planes = _hue(planes, factors.hue)
    return np.ascontiguousarray(to_uint8(planes).transpose(1, 2, 0))


def augment_batch(
    images_Bhwc: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Augment each image of a uint8 `[B, h, w, 3]` batch with its own draw; returns a new batch."""
    return np.stack([augment(image, augmentation.sample(rng)) for image in images_Bhwc])


def shift(image_hwc: NDArray[np.uint8], vertical: int, horizontal: int) -> NDArray[np.uint8]:
    """Move a `[h, w, 3]` image by whole pixels (down, right), repeating the edge."""
    h, w, _ = image_hwc.shape
    rows = np.clip(np.arange(h) - vertical, 0, h - 1)
    columns = np.clip(np.arange(w) - horizontal, 0, w - 1)
    return image_hwc[rows[:, None], columns[None, :]]


def adjust_brightness(image: NDArray[np.float32], delta: float) -> NDArray[np.float32]:
    """Add `delta` to a float32 `[h, w, 3]` image in 0..1 and clip."""
    return _on_planes(_brightness, image, delta)


def adjust_contrast(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Scale a float32 `[h, w, 3]` image in 0..1 around the mean of each channel and clip."""
    return _on_planes(_contrast, image, factor)


def adjust_saturation(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Scale the HSV saturation of a float32 `[h, w, 3]` image in 0..1, at most to full saturation."""
    return _on_planes(_saturation, image, factor)


def adjust_hue(image: NDArray[np.float32], delta: float) -> NDArray[np.float32]:
    """Rotate the hue of a float32 `[h, w, 3]` image in 0..1 by `delta` circles; value and chroma stay."""
    return _on_planes(_hue, image, delta)


def _on_planes(
    operation: Callable[[NDArray[np.float32], float], NDArray[np.float32]], image_hwc: NDArray[np.float32], value: float
) -> NDArray[np.float32]:
    """Apply an operation on colour planes `[3, h, w]`, which numpy goes through much faster, to `[h, w, 3]`."""
    return operation(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)), value).transpose(1, 2, 0)


def _brightness(planes: NDArray[np.float32], delta: float) -> NDArray[np.float32]:
    return _clip(planes + np.float32(delta))


def _contrast(planes: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    mean = planes.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return _clip((planes - mean) * np.float32(factor) + mean)


def _saturation(planes: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    limit = np.divide(value, chroma, out=np.ones_like(value), where=chroma > 0)
    return _clip(value - (value - planes) * np.minimum(np.float32(factor), limit))


def _hue(planes: NDArray[np.float32], delta: float) -> NDArray[np.float32]:
    red, green, blue = planes
    value, low = planes.max(axis=0), planes.min(axis=0)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, np.float32(1))
    is_red, is_green = value == red, value == green
    start = np.where(is_red, green, np.where(is_green, blue, red))
    end = np.where(is_red, blue, np.where(is_green, red, green))
    sector = np.where(is_red, np.float32(0), np.where(is_green, np.float32(2), np.float32(4))) + (start - end) / safe
    hue = np.mod(np.where(chroma > 0, sector, np.float32(0)) + np.float32(6 * delta), np.float32(6))
    rotated = np.empty_like(planes)
    for channel, centre in enumerate((0.0, 2.0, 4.0)):
        distance = np.abs(hue - np.float32(centre))
        distance = np.minimum(distance, np.float32(6) - distance)
        rotated[channel] = low + chroma * np.clip(np.float32(2) - distance, 0.0, 1.0)
    return _clip(rotated)


def _clip(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip freshly computed values to 0..1, in their own memory."""
    return np.clip(image, 0.0, 1.0, out=image)


def _apply_levels(image_hwc: NDArray[np.uint8], brightness: float, contrast: float) -> NDArray[np.uint8]:
    """Apply brightness, then contrast, to uint8 pixels through one table of 256 levels per channel."""
    if brightness == 0.0 and contrast == 1.0:
        return image_hwc
    levels = np.clip(np.arange(256) / 255 + brightness, 0.0, 1.0)
    adjusted = np.empty_like(image_hwc)
    for channel in range(3):
        pixels = image_hwc[:, :, channel]
        mean = np.bincount(pixels.ravel(), minlength=256) @ levels / pixels.size
        table = np.clip((levels - mean) * contrast + mean, 0.0, 1.0)
        np.take((table * 255.5).astype(np.uint8), pixels, out=adjusted[:, :, channel])
    return adjusted
