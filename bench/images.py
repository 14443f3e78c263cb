"""Processor time of the image path: `python bench/images.py [--repeats 200]`.

Compares the published path (exact to the grey level) and the tiny policy's with the same steps done by PIL alone, which
is not exact: its decoder, its Lanczos and its bilinear crop each round differently.
"""

import argparse
import io
import statistics
import time

import numpy as np
from PIL import Image

from rdvla.data.augmentation import LIGHT_AUGMENTATION, PUBLISHED_AUGMENTATION, augment_batch
from rdvla.data.images import PUBLISHED, TINY


def picture() -> np.ndarray:
    y, x = np.mgrid[0:256, 0:256]
    channels = [127.5 + 100 * np.sin(0.11 * x + 0.05 * y + c) * np.cos(0.07 * y - 0.02 * c * x) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (256, 256, 3))
    return np.clip(np.stack(channels, axis=2) + noise, 0, 255).astype(np.uint8)


def pil_path(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    small = Image.open(buffer).resize((224, 224), Image.Resampling.LANCZOS)
    edge = 224 * (1 - 0.9**0.5) / 2
    box = (edge, edge, 224 - edge, 224 - edge)
    return np.asarray(small.resize((224, 224), Image.Resampling.BILINEAR, box=box))


def pil_tiny(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BOX))


def milliseconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    image, rng = picture(), np.random.default_rng(0)
    pairs = {
        "published path, 256 -> 224": (lambda: PUBLISHED.prepare(image), lambda: pil_path(image)),
        "tiny path, 256 -> 128": (lambda: TINY.prepare(image), lambda: pil_tiny(image)),
    }
    print("| one image | ours (ms of CPU) | PIL alone (ms) | values that differ | largest |\n|---|---|---|---|---|")
    for name, (ours, theirs) in pairs.items():
        distance = np.abs(ours().astype(int) - theirs())
        times = f"{milliseconds(ours, repeats):.2f} | {milliseconds(theirs, repeats):.2f}"
        print(f"| {name} | {times} | {(distance > 0).mean():.1%} | {distance.max()} |")
    print("\n| augmentation, one image | ms of CPU |\n|---|---|")
    for name, size, augmentation in (
        ("light", 128, LIGHT_AUGMENTATION),
        ("published", 224, PUBLISHED_AUGMENTATION),
    ):
        batch = np.stack([image[:size, :size]] * 8)
        duration = milliseconds(lambda b=batch, a=augmentation: augment_batch(b, a, rng), max(repeats // 20, 3)) / 8
        print(f"| {name}, {size} pixels | {duration:.2f} |")


if __name__ == "__main__":
    main()
