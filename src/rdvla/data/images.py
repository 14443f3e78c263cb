"""How a camera image becomes the pixels a vision tower sees.

Two paths are values of one thing: `PUBLISHED` repeats the published evaluation to the grey level (JPEG round trip,
Lanczos-3, centre crop) without TensorFlow, `TINY` is a plain box filter. Training-time augmentation is in
`rdvla.data.augmentation`.

Shapes: H, W the camera's size, h = w = `ImagePath.size`.
"""

import io
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rdvla.errors import ConfigError, DatasetError, ObservationError, suggest
from rdvla.files import LFS_POINTER

ResizeKernel = Literal["lanczos3", "box"]

JPEG_QUALITY = 95
LANCZOS_RADIUS = 3.0
_BLOCK = 28
_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Where a PNG file says how many bits a channel has."""
_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


@dataclass(frozen=True)
class ImagePath:
    """The steps from a camera image to a policy's pixels, as data that a checkpoint stores.

    Attributes:
        size: side of the square result, in pixels.
        resize: `lanczos3` (antialiased, float32, rounded once) or `box` (average of the covered pixels).
        jpeg: compress and decompress first (quality 95, 4:2:0, fast integer DCT), as the published evaluation does.
        crop_area: cut this fraction of the area from the centre and enlarge it to `size`; None keeps everything.

    Raises:
        ConfigError: a value out of range.
    """

    size: int = 224
    resize: ResizeKernel = "lanczos3"
    jpeg: bool = False
    crop_area: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 8:
            raise ConfigError(f"image size must be a whole number of at least 8 pixels, found {self.size!r}.")
        if self.resize not in get_args(ResizeKernel):
            raise ConfigError(f"unknown resize kernel '{self.resize}'.{suggest(self.resize, get_args(ResizeKernel))}")
        if not isinstance(self.jpeg, bool):
            raise ConfigError(f"jpeg must be true or false, found {self.jpeg!r}.")
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ConfigError(f"crop_area must be in (0, 1] or null, found {self.crop_area!r}.")

    @property
    def name(self) -> str:
        """Every field in words: two paths of one name do the same."""
        return json.dumps(asdict(self), sort_keys=True)

    def prepare(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the whole path to one image.

        An image that already has the target size skips JPEG and resizing, as in the published evaluation.

        Args:
            image_HWC: uint8 `[H, W, 3]`, RGB, upright.

        Returns:
            uint8 `[size, size, 3]`.

        Raises:
            ObservationError: not a uint8 image with three channels.
        """
        image_hwc = self.shrink(image_HWC)
        return image_hwc if self.crop_area is None else centre_crop(image_hwc, self.crop_area)

    def shrink(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the path up to the crop: what training stores before it crops at random.

        Args:
            image_HWC: uint8 `[H, W, 3]`.

        Returns:
            uint8 `[size, size, 3]`.

        Raises:
            ObservationError: not a uint8 image with three channels.
        """
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
            raise ObservationError(
                f"an image must be uint8 [H, W, 3], found {image_HWC.dtype} {list(image_HWC.shape)}."
            )
        if image_HWC.shape[:2] == (self.size, self.size):
            return image_HWC
        if self.jpeg:
            image_HWC = jpeg_round_trip(image_HWC)
        if self.resize == "box":
            return resize_box(image_HWC, self.size)
        return resize_lanczos3(image_HWC, self.size)


PUBLISHED = ImagePath(size=224, resize="lanczos3", jpeg=True, crop_area=0.9)
TINY = ImagePath(size=128, resize="box")


def jpeg_round_trip(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the uint8 `[H, W, 3]` image after JPEG compression at quality 95 with 4:2:0 chroma.

    The decoder uses the fast integer DCT; an accurate one is about 1 grey level away on average.
    """
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return decode_jpeg(buffer.getvalue())


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode JPEG bytes to uint8 `[H, W, 3]` with the fast DCT and smooth chroma upsampling.

    Raises:
        ObservationError: the bytes are not a JPEG file.
    """
    try:
        decoded = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True, fastupsample=False)
    except ValueError as error:
        raise ObservationError(f"the bytes are not a readable JPEG image: {error}") from error
    return cast(NDArray[np.uint8], decoded)


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decode an image file to uint8 `[H, W, 3]`: JPEG like `decode_jpeg`, every other format with Pillow.

    Pictures of 8 bits become RGB: grey is repeated, palettes are looked up, an alpha channel is dropped (the colours
    below it are kept), CMYK and YCbCr are converted.

    Raises:
        DatasetError: the bytes are not a readable image, or one of more than 8 bits (depth, floats).
    """
    try:
        if content.startswith(_JPEG_START):
            return decode_jpeg(content)
        if content.startswith(LFS_POINTER):
            raise DatasetError("it is a Git LFS pointer, not the picture itself: run `git lfs pull` where it came from")
        picture = Image.open(io.BytesIO(content))
        wide = content.startswith(_PNG_START) and content[_PNG_DEPTH] > 8  # of colours, Pillow would drop the low bits
        if wide or picture.mode not in _EIGHT_BITS:
            raise DatasetError(
                f"it is no 8-bit picture (mode {'16-bit ' if wide else ''}{picture.mode}): depth or floats, whose "
                "scale nobody knows. Leave this camera out (data.cameras), or record it as 8-bit RGB"
            )
        return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise DatasetError(f"its {len(content)} bytes are no image file, or only a part of one") from None
    except (OSError, ValueError, SyntaxError, ObservationError) as error:
        raise DatasetError(f"the bytes are not a readable image: {error}") from None


def encode_png(image_HWC: NDArray[np.uint8]) -> bytes:
    """Return uint8 `[H, W, 3]` as a PNG file, exact and fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def resize_box(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize uint8 `[H, W, 3]` to `[size, size, 3]` by averaging the pixels that each new pixel covers."""
    return np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BOX))


def resize_lanczos3(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize uint8 `[H, W, 3]` to `[size, size, 3]`: Lanczos-3, widened when shrinking, rounded once at the end."""
    planes_hCw = _lanczos3_planes(image_HWC, size)
    np.clip(np.rint(planes_hCw, out=planes_hCw), 0, 255, out=planes_hCw)
    return np.ascontiguousarray(planes_hCw.astype(np.uint8).transpose(0, 2, 1))


def resize_lanczos3_float(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Resize like `resize_lanczos3` without rounding: float32 `[size, size, 3]`, about 0..255 with overshoot."""
    return np.ascontiguousarray(_lanczos3_planes(image_HWC, size).transpose(0, 2, 1))


def _lanczos3_planes(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Filter the rows, then the columns: float32 `[h, C, w]`. A block of outputs reads only the inputs it covers."""
    H, W, C = image_HWC.shape
    planes_H_CW = image_HWC.transpose(0, 2, 1).reshape(H, C * W).astype(np.float32)
    rows_h_CW = np.empty((size, C * W), np.float32)
    for outputs, inputs, weights in _lanczos3_blocks(H, size):
        np.matmul(weights, planes_H_CW[inputs], out=rows_h_CW[outputs])
    rows_hC_W = rows_h_CW.reshape(size * C, W)
    planes_hC_w = np.empty((size * C, size), np.float32)
    for outputs, inputs, weights in _lanczos3_blocks(W, size):
        planes_hC_w[:, outputs] = rows_hC_W[:, inputs] @ weights.T
    return planes_hC_w.reshape(size, C, size)


@lru_cache(maxsize=16)
def _lanczos3_blocks(n_in: int, n_out: int) -> tuple[tuple[slice, slice, NDArray[np.float32]], ...]:
    """Return for each block of outputs: which outputs, the range of inputs they read, and their weights."""
    matrix = _lanczos3_matrix(n_in, n_out)
    blocks = []
    for start in range(0, n_out, _BLOCK):
        rows = matrix[start : start + _BLOCK]
        covered = np.flatnonzero(rows.any(axis=0))
        inputs = slice(int(covered[0]), int(covered[-1]) + 1)
        blocks.append((slice(start, start + len(rows)), inputs, np.ascontiguousarray(rows[:, inputs])))
    return tuple(blocks)


def _lanczos3_matrix(n_in: int, n_out: int) -> NDArray[np.float32]:
    """Return the `[n_out, n_in]` weights of one axis; every row sums to 1.

    Positions and weights are float32 on purpose: the published pipeline computes them so, and exact ones differ by
    1e-3 grey levels, which rounds some pixels the other way.
    """
    f32, radius, pi = np.float32, np.float32(LANCZOS_RADIUS), np.float32(math.pi)
    step = f32(1) / (f32(n_out) / f32(n_in))
    width = max(step, f32(1))
    centre = (np.arange(n_out, dtype=f32) + f32(0.5))[:, None] * step
    pixel = np.arange(n_in, dtype=f32)[None, :]
    distance = np.abs((pixel + f32(0.5) - centre) * (f32(1) / width))
    x = np.maximum(distance, f32(1e-3))
    weights = radius * np.sin(pi * x) * np.sin(pi * x / radius) / (pi * pi * x * x)
    weights = np.where(distance <= f32(1e-3), f32(1), weights)
    half = radius * width
    covered = (pixel >= np.ceil(centre - half - f32(0.5))) & (pixel <= np.floor(centre + half - f32(0.5)))
    weights = np.where(covered & (distance <= radius), weights, f32(0))
    return cast(NDArray[np.float32], weights * (f32(1) / np.cumsum(weights, axis=1, dtype=f32)[:, -1:]))


def centre_crop(image_hwc: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """Enlarge the central `area` (fraction, 0..1] of a uint8 `[h, w, 3]` image back to `[h, w, 3]`, bilinearly."""
    side = np.sqrt(np.float32(area))
    offset = float((1 - side) / 2)
    cropped_chw = crop_planes(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)), offset, offset, float(side))
    return np.ascontiguousarray(to_uint8(cropped_chw).transpose(1, 2, 0))


def crop_box(image_hwc: NDArray[np.float32], top: float, left: float, side: float) -> NDArray[np.float32]:
    """Enlarge a box of an image to the whole image, bilinearly; the corners of the box stay on pixel centres.

    Args:
        image_hwc: float32 `[h, w, 3]`, 0..1.
        top: upper edge as a fraction of the height, 0..1 - side.
        left: left edge as a fraction of the width, 0..1 - side.
        side: height and width of the box as a fraction.

    Returns:
        float32 `[h, w, 3]`, 0..1.
    """
    cropped_chw = crop_planes(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)), top, left, side)
    return np.ascontiguousarray(cropped_chw.transpose(1, 2, 0))


def crop_planes(
    planes_chw: NDArray[np.uint8] | NDArray[np.float32], top: float, left: float, side: float
) -> NDArray[np.float32]:
    """Crop like `crop_box`, on colour planes: `[3, h, w]`, uint8 or float32 in 0..1, to float32 `[3, h, w]`."""
    _, h, w = planes_chw.shape
    upper, lower, down = _bilinear_taps(h, top, side)
    first, last, across = _bilinear_taps(w, left, side)
    columns_chw = _mix(_unit(planes_chw.take(first, axis=2)), _unit(planes_chw.take(last, axis=2)), across)
    rows_chw = _mix(columns_chw.take(upper, axis=1), columns_chw.take(lower, axis=1), down[:, None])
    return np.clip(rows_chw, 0.0, 1.0, out=rows_chw)


def _mix(start: NDArray[np.float32], end: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return start + (end - start) * weight, in the memory of `end`."""
    end -= start
    end *= weight
    end += start
    return end


def _unit(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    return to_float(pixels) if pixels.dtype == np.uint8 else cast(NDArray[np.float32], pixels)


@lru_cache(maxsize=64)
def _bilinear_taps(n: int, start: float, side: float) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return for each of `n` samples of a box the two pixels around it and the weight of the second."""
    low, high = np.float32(start), np.float32(start) + np.float32(side)
    step = (high - low) * np.float32(n - 1) / np.float32(n - 1)
    position = low * np.float32(n - 1) + np.arange(n, dtype=np.float32) * step
    position = np.clip(position, 0, n - 1)
    before = np.floor(position)
    after = np.ceil(position)
    return before.astype(np.intp), after.astype(np.intp), position - before


def to_float(image: NDArray[Any]) -> NDArray[np.float32]:
    """Scale uint8 0..255 to float32 0..1."""
    return image.astype(np.float32) * np.float32(1 / 255)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale float32 0..1 back to uint8: floor(x * 255.5), the published rounding."""
    return (image * np.float32(255.5)).astype(np.uint8)
