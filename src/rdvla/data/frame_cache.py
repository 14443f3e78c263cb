"""Decodes a dataset's images once: uint8 arrays on disk at the model's resolution, mapped into memory.

A cache folder is named by the content it was made from. It appears by a rename once it is complete, and is checked
when opened; one that is damaged is built again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdvla.data.episodes import Progress
from rdvla.errors import DatasetError
from rdvla.files import user_cache, writing

_MANIFEST = "manifest.json"
_CHECKED_FRAMES = 200
_FORMAT = 2


@dataclass(frozen=True)
class FrameTransform:
    """What happens to every stored frame before it is cached.

    Attributes:
        name: says exactly what `apply` does, sizes included; a different name is a different cache.
        apply: uint8 `[H, W, 3]` -> uint8 `[h, w, 3]`; called from several threads.
    """

    name: str
    apply: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def resize_to(size: int) -> FrameTransform:
    """Return the antialiased resize to `size` x `size`: box average for whole factors, Lanczos otherwise."""

    def apply(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if (height, width) == (size, size):
            return image
        whole = height % size == 0 and width % size == 0
        kernel = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
        return np.asarray(Image.fromarray(image).resize((size, size), kernel))

    return FrameTransform(f"resize_to({size})", apply)


KEEP_SIZE = FrameTransform("keep", lambda image: image)
"""Caches frames at the stored resolution."""


@dataclass(frozen=True)
class EpisodeFrames:
    """What the cache takes from one episode: `count` frames of one camera, written from slot `first` on.

    Attributes:
        camera: camera name.
        first: position of the first frame in the cache.
        count: number of frames.
        decode: yields the frames at their stored size, uint8 `[H, W, 3]`.
    """

    camera: str
    first: int
    count: int
    decode: Callable[[], Iterable[NDArray[np.uint8]]]


class MappedFrames:
    """The cached frames of one camera, uint8 `[N, h, w, 3]`, mapped from disk; pickling sends the path, not them."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        """Map the file at `path`.

        Raises:
            ValueError: it is not exactly as long as `shape` says.
            OSError: it cannot be opened.
        """
        self.path = path
        self.shape = shape
        self._frames = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
        if path.stat().st_size != self._frames.size:
            raise ValueError(f"'{path}' has {path.stat().st_size} bytes for {shape}")

    def __len__(self) -> int:
        """Number of frames N."""
        return self.shape[0]

    def __getitem__(self, slots: int | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a copy of the frames at `slots`: `[h, w, 3]`, or `[B, h, w, 3]` for an array `[B]`."""
        return np.array(self._frames[slots])

    def __reduce__(self) -> tuple[type["MappedFrames"], tuple[Path, tuple[int, ...]]]:
        return MappedFrames, (self.path, self.shape)


class JoinedFrames:
    """The frames of several caches of the same size, one after the other."""

    def __init__(self, parts: Sequence[MappedFrames]) -> None:
        """Join `parts`, at least one.

        Raises:
            DatasetError: their images differ in size.
        """
        self.parts = tuple(parts)
        sizes = sorted({part.shape[1:3] for part in parts})
        if len(sizes) > 1:
            raise DatasetError(f"images of {sizes[0]} and of {sizes[1]} pixels cannot be joined.")
        self._first = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._first[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        """Number of frames N."""
        return self.shape[0]

    def __getitem__(self, slots: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a copy of the frames at `slots` `[B]`: `[B, h, w, 3]`."""
        owner = np.searchsorted(self._first, slots, side="right") - 1
        frames = np.empty((len(slots), *self.shape[1:]), dtype=np.uint8)
        for number, part in enumerate(self.parts):
            frames[owner == number] = part[slots[owner == number] - self._first[number]]
        return frames


def join_frames(parts: Sequence[MappedFrames]) -> MappedFrames | JoinedFrames:
    """Return the frames of `parts`, at least one, as one; a single one as it is, so that reading it copies once.

    Raises:
        DatasetError: their images differ in size.
    """
    return parts[0] if len(parts) == 1 else JoinedFrames(parts)


def cache_key(
    fingerprint: str, cameras: Mapping[str, str], transform: FrameTransform, num_frames: int, timestamps: str = ""
) -> str:
    """Return the folder name of a cache: a hash of everything its content depends on.

    Args:
        fingerprint: of the dataset's files.
        cameras: camera name -> feature key.
        transform: applied to every frame.
        num_frames: how many frames each camera has.
        timestamps: how video frames are found; empty where there is no video.
    """
    parts = [_FORMAT, fingerprint, sorted(cameras.items()), transform.name, num_frames]
    text = json.dumps([*parts, timestamps] if timestamps else parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_cache(
    folder: Path | None,
    key: str,
    jobs: Sequence[EpisodeFrames],
    transform: FrameTransform,
    progress: Progress | None = None,
) -> dict[str, MappedFrames]:
    """Return camera name -> cached frames; build them first if needed.

    Args:
        folder: where caches live; default the user's cache folder.
        key: from `cache_key`.
        jobs: the episodes to decode, per camera.
        transform: applied to every frame.
        progress: called while building.

    Raises:
        DatasetError: frames cannot be decoded, or differ in size.
        StorageError: the disk refuses.
    """
    place = (user_cache() / "frames" if folder is None else folder) / key
    frames = _load(place)
    if frames is None:
        _build(place, jobs, transform, progress)
        frames = _load(place)
    if frames is None:
        raise DatasetError(f"the frame cache at '{place}' is damaged right after it was written; check the disk.")
    return frames


def _load(place: Path) -> dict[str, MappedFrames] | None:
    """Map the cache at `place`; None if it is absent or damaged."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        return {name: _map(place, name, entry) for name, entry in manifest["cameras"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _map(place: Path, camera: str, entry: Mapping[str, Any]) -> MappedFrames:
    frames = MappedFrames(_frames_path(place, camera), tuple(entry["shape"]))
    checksums = np.fromfile(_checksums_path(place, camera), dtype=np.uint32)
    for slot in np.unique(np.linspace(0, len(frames) - 1, _CHECKED_FRAMES).astype(int)):
        if zlib.crc32(frames[int(slot)].data) != checksums[slot]:
            raise ValueError(f"cached frame {slot} of {camera} is damaged")
    return frames


def _build(place: Path, jobs: Sequence[EpisodeFrames], transform: FrameTransform, progress: Progress | None) -> None:
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with writing(place):
            shapes = _decode_all(staging, jobs, transform, progress)
            manifest = {"transform": transform.name, "cameras": {name: {"shape": s} for name, s in shapes.items()}}
            (staging / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            _move(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(staging: Path, place: Path) -> None:
    """Put the finished cache in place, unless another process has put its own there meanwhile."""
    if place.exists() and _load(place) is None:
        shutil.rmtree(place)
    try:
        staging.rename(place)
    except OSError:
        if _load(place) is None:
            raise


def _decode_all(
    staging: Path, jobs: Sequence[EpisodeFrames], transform: FrameTransform, progress: Progress | None
) -> dict[str, list[int]]:
    totals: dict[str, int] = {}
    for job in jobs:
        totals[job.camera] = max(totals.get(job.camera, 0), job.first + job.count)
    frames, checksums = {}, {}
    for camera in totals:
        first = next(iter(next(job for job in jobs if job.camera == camera and job.count).decode()))
        shape = (totals[camera], *transform.apply(first).shape)
        frames[camera] = _allocate(_frames_path(staging, camera), shape)
        checksums[camera] = np.zeros(totals[camera], dtype=np.uint32)

    def decode(job: EpisodeFrames) -> None:
        _decode_episode(job, transform, frames[job.camera], checksums[job.camera])

    _run(jobs, decode, progress)
    for camera in totals:
        frames[camera].flush()
        checksums[camera].tofile(_checksums_path(staging, camera))
    return {camera: list(frames[camera].shape) for camera in totals}


def _decode_episode(
    job: EpisodeFrames, transform: FrameTransform, frames: NDArray[np.uint8], checksums: NDArray[np.uint32]
) -> None:
    slot = job.first
    for image in job.decode():
        small = transform.apply(image)
        if small.shape != frames.shape[1:]:
            raise DatasetError(
                f"camera '{job.camera}' changes its image size from {list(frames.shape[1:])} to {list(small.shape)}; "
                "give a size to resize to."
            )
        frames[slot] = small
        checksums[slot] = zlib.crc32(frames[slot])
        slot += 1
    if slot != job.first + job.count:
        raise DatasetError(f"camera '{job.camera}' has {slot - job.first} frames in an episode of {job.count}.")


def _run(jobs: Sequence[EpisodeFrames], decode: Callable[[EpisodeFrames], None], progress: Progress | None) -> None:
    """Decode in as many threads as there are cores (decoder and resize release the interpreter)."""
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        pending: set[Future[None]] = {pool.submit(decode, job) for job in jobs}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            if progress is not None:
                progress(len(jobs) - len(pending), len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _allocate(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Create the file with its full size reserved, so that a full disk is an error now and not a crash later."""
    size = int(np.prod(shape))
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _frames_path(place: Path, camera: str) -> Path:
    return place / f"{quote(camera, safe='')}.frames"


def _checksums_path(place: Path, camera: str) -> Path:
    return place / f"{quote(camera, safe='')}.crc32"
