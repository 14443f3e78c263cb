"""Processor time of the image path, beside the same steps done by PIL alone.

PIL alone is not exact: its decoder, its Lanczos and its bilinear crop each round differently from the published path.
"""

import io
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdvla.bench.table import Cell, Table
from rdvla.data.augmentation import LIGHT_AUGMENTATION, PUBLISHED_AUGMENTATION, augment_batch
from rdvla.data.images import PUBLISHED, TINY

Picture = NDArray[np.uint8]


def measure_images(repeats: int) -> tuple[Table, Table]:
    """Return milliseconds of processor time per image: ours against PIL, and the augmentations.

    Args:
        repeats: repetitions of each, at least 1; medians are shown.
    """
    image, rng = picture(), np.random.default_rng(0)
    pairs: dict[str, tuple[Callable[[Picture], Picture], Callable[[Picture], Picture]]] = {
        "published path, 256 -> 224": (PUBLISHED.prepare, pil_path),
        "tiny path, 256 -> 128": (TINY.prepare, pil_tiny),
    }
    paths: list[tuple[Cell, ...]] = []
    for name, (ours, theirs) in pairs.items():
        distance = np.abs(ours(image).astype(int) - theirs(image))
        times = [milliseconds(partial(path, image), repeats) for path in (ours, theirs)]
        paths.append((name, *times, float((distance > 0).mean()), int(distance.max())))
    augmentations: list[tuple[Cell, ...]] = []
    for name, size, augmentation in (("light", 128, LIGHT_AUGMENTATION), ("published", 224, PUBLISHED_AUGMENTATION)):
        batch = np.stack([image[:size, :size]] * 8)
        duration = milliseconds(partial(augment_batch, batch, augmentation, rng), max(repeats // 20, 3)) / len(batch)
        augmentations.append((f"{name}, {size} pixels", duration))
    return (
        Table(
            "One image, ms of processor time",
            ("path", "ours", "PIL alone", "values that differ", "largest"),
            tuple(paths),
        ),
        Table("Augmentation of one image, ms of processor time", ("augmentation", "ours"), tuple(augmentations)),
    )


def picture() -> Picture:
    """Return a smooth uint8 picture `[256, 256, 3]` with a little noise."""
    y, x = np.mgrid[0:256, 0:256]
    channels = [127.5 + 100 * np.sin(0.11 * x + 0.05 * y + c) * np.cos(0.07 * y - 0.02 * c * x) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (256, 256, 3))
    return np.clip(np.stack(channels, axis=2) + noise, 0, 255).astype(np.uint8)


def pil_path(image: Picture) -> Picture:
    """Return the published steps (JPEG, Lanczos to 224, centre crop of 0.9) done by PIL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    small = Image.open(buffer).resize((224, 224), Image.Resampling.LANCZOS)
    edge = 224 * (1 - 0.9**0.5) / 2
    box = (edge, edge, 224 - edge, 224 - edge)
    return np.asarray(small.resize((224, 224), Image.Resampling.BILINEAR, box=box))


def pil_tiny(image: Picture) -> Picture:
    """Return the tiny policy's box average done by PIL."""
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BOX))


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)
