"""Samples per second of the loader alone.

A sample is one image per camera, a state and a chunk of 8 actions. In the batches that training gets, drawn at random
from the frame cache, plain, with the augmentations, and with those left to a GPU; and without the cache: found in its
video (or table), decoded and resized when it is asked for. Without DATASET a small synthetic one is recorded first.
Compare lines of one run; on a busy machine, those of the last column.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rdvla.bench.table import Table
from rdvla.data.augmentation import LIGHT_AUGMENTATION, PUBLISHED_AUGMENTATION, Augmentation
from rdvla.data.frame_cache import resize_to
from rdvla.data.images import ImagePath
from rdvla.data.lerobot_meta import STANDARD_CAMERAS, camera_feature, vector_feature
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.model.prompt import Prompt, train_tokenizer
from rdvla.policies.io import PolicyIO
from rdvla.train.batches import Preparation, training_batches
from rdvla.types import ActionConvention

BATCH = 16

Load = Callable[[int], None]
"""Loads so many samples."""


def measure_loader(root: Path | None, samples: int, size: int) -> Table:
    """Return samples per second, of the clock (one thread) and of one core's processor time.

    Args:
        root: a LeRobotDataset; None records a small one.
        samples: samples per measurement, at least 16.
        size: height and width of the images in pixels.

    Raises:
        DatasetError: no dataset there, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = LeRobotDataset.open(
            root or record(Path(folder) / "dataset"),
            chunk_size=8,
            transform=resize_to(size),
            cache_dir=Path(folder) / "cache",
        )
        ways = {
            "cache": from_cache(dataset, Augmentation()),
            "cache, light augmentation": from_cache(dataset, LIGHT_AUGMENTATION),
            "cache, published augmentation": from_cache(dataset, PUBLISHED_AUGMENTATION),
            "cache, published augmentation left to a GPU": from_cache(dataset, PUBLISHED_AUGMENTATION, later=True),
            "no cache, decoded on demand": from_files(dataset, size),
        }
        rows = []
        for name, load in ways.items():
            count = samples if name.startswith("cache") else max(BATCH, samples // 8)
            rows.append((name, *samples_per_second(load, count)))
    columns = ("samples per second", "by the clock", "per second of one core")
    return Table(f"Loader, {len(dataset.cameras)} cameras at {size} pixels", columns, tuple(rows))


def record(root: Path) -> Path:
    """Record 8 episodes of 100 frames with two moving cameras of 256 pixels as video."""
    y, x = np.mgrid[0:256, 0:256]
    camera = camera_feature(256, 256, "video")
    features = {
        **dict.fromkeys(STANDARD_CAMERAS.values(), camera),
        "observation.state": vector_feature([f"s{i}" for i in range(8)]),
        "action": vector_feature([f"a{i}" for i in range(7)]),
    }
    writer = LeRobotWriter(root, fps=20, features=features)
    rng = np.random.default_rng(0)
    for _ in range(8):
        frames = [
            np.stack([127 + 100 * np.sin(x / 30 + y / 40 + step / 9 + c) for c in range(3)], axis=2).astype(np.uint8)
            for step in range(100)
        ]
        columns = {
            "observation.state": rng.normal(size=(100, 8)).astype(np.float32),
            "action": rng.normal(size=(100, 7)).astype(np.float32),
        }
        writer.add_episode(RecordedEpisode("move", columns, dict.fromkeys(STANDARD_CAMERAS.values(), frames)))
    writer.finalize()
    return root


def from_cache(dataset: LeRobotDataset, augmentation: Augmentation, *, later: bool = False) -> Load:
    """Return what goes through the batches that training would get."""
    prompt = Prompt(train_tokenizer(dataset.instructions), "{instruction}")
    io = PolicyIO(tuple(dataset.cameras), ImagePath(), prompt, dataset.statistics(), ActionConvention())

    prepare = Preparation(dataset, io, BATCH, augmentation, state_noise=0.02, seed=0, augment_later=later)

    def load(samples: int) -> None:
        for _ in training_batches(prepare, range(samples // BATCH)):
            pass

    return load


def from_files(dataset: LeRobotDataset, size: int) -> Load:
    """Return what decodes and resizes images when they are asked for."""
    shrink = resize_to(size).apply
    starts = dataset.source.episode_start

    def decode(row: int) -> None:
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        for key in dataset.info.cameras:
            shrink(next(iter(dataset.source.decode(episode, key, np.array([row - starts[episode]])))))

    def load(samples: int) -> None:
        for row in np.random.default_rng(0).choice(dataset.anchors, samples):
            decode(int(row))

    return load


def samples_per_second(load: Load, samples: int) -> tuple[float, float]:
    """Return samples per second of the clock, and per second of processor time."""
    load(BATCH)
    clock, processor = time.perf_counter(), time.process_time()
    load(samples)
    return samples / (time.perf_counter() - clock), samples / (time.process_time() - processor)
