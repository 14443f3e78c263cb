"""Video files of a LeRobotDataset: many episodes per file on the way in, single frames on the way out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import VIDEO_PATH, frame_rate
from rdvla.data.lerobot_tables import file_location, file_path, reading
from rdvla.errors import DatasetError, MissingExtraError
from rdvla.files import writing

try:
    import av
    import av.error
except ImportError as error:
    raise MissingExtraError("av", "data") from error

PIXEL_FORMAT = "yuv420p"
_DAMAGE = (av.error.FFmpegError, IndexError)
_KEYFRAME_DISTANCE = 2
_CODECS: dict[str, dict[str, str]] = {
    "libsvtav1": {"g": str(_KEYFRAME_DISTANCE), "crf": "30", "preset": "12"},
    "libx264": {"g": str(_KEYFRAME_DISTANCE), "crf": "23", "preset": "veryfast"},
}
_SMALLEST_AV1 = 64


@dataclass(frozen=True)
class VideoSpan:
    """Where one episode lies in the video files of one camera.

    Attributes:
        chunk_index: chunk of the file.
        file_index: file within the chunk.
        from_timestamp: second at which the episode's first frame is shown.
        to_timestamp: second at which its last frame ends.
    """

    chunk_index: int
    file_index: int
    from_timestamp: float
    to_timestamp: float


class VideoSink:
    """One camera's video files: episodes appended one after the other, a new file past the limit."""

    def __init__(self, root: Path, key: str, fps: float, size: tuple[int, int], limit_mb: float) -> None:
        """Write the videos of feature `key` below `root`; frames are `size` = (height, width).

        Raises:
            DatasetError: a side is odd, which 4:2:0 video cannot hold.
        """
        if size[0] % 2 or size[1] % 2:
            raise DatasetError(f"'{key}' is {size[0]}x{size[1]}; video needs even sides: store it as dtype 'image'.")
        self._root = root
        self._key = key
        self._fps = fps
        self._rate = frame_rate(fps)
        self._size = size
        self._limit = limit_mb * 1024 * 1024
        self._number = -1
        self._frames = self._bytes = 0
        self._container: Any = None
        self._stream: Any = None
        self.codec = choose_codec(size)

    @property
    def info(self) -> dict[str, Any]:
        """What `meta/info.json` records about the videos."""
        height, width = self._size
        options = _CODECS[self.codec]
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "av1" if self.codec == "libsvtav1" else "h264",
            "video.pix_fmt": PIXEL_FORMAT,
            "video.fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
            "video.channels": 3,
            "video.g": _KEYFRAME_DISTANCE,
            "video.crf": int(options["crf"]),
            "video.preset": int(options["preset"]) if options["preset"].isdigit() else options["preset"],
            "video.fast_decode": 0,
            "video.extra_options": {},
            "video.video_backend": "pyav",
            "has_audio": False,
            "is_depth_map": False,
        }

    def append(self, frames: Iterable[NDArray[np.uint8]]) -> VideoSpan:
        """Encode one episode's frames, uint8 `[H, W, 3]` each, and return where they went.

        Raises:
            StorageError: the disk refuses.
        """
        with writing(self._path):
            if self._is_full:
                self.close()
                self._open()
            start = self._frames
            try:
                for image in frames:
                    self._encode(image)
            except BaseException:
                self._container = self._stream = None  # to flush into a file that was refused crashes FFmpeg
                raise
        chunk, file = file_location(self._number)
        return VideoSpan(chunk, file, float(start / self._rate), float(self._frames / self._rate))

    def close(self) -> None:
        """Flush the encoder and finish the current file; once, as an encoder cannot be flushed again.

        Raises:
            StorageError: the disk refuses.
        """
        if self._container is None:
            return
        container, stream = self._container, self._stream
        self._container = self._stream = None
        with writing(self._path):
            for packet in stream.encode():
                container.mux(packet)
            container.close()

    @property
    def _is_full(self) -> bool:
        return self._container is None or self._bytes >= self._limit

    @property
    def _path(self) -> Path:
        return file_path(self._root, VIDEO_PATH, max(self._number, 0), video_key=self._key)

    def _open(self) -> None:
        self._number += 1
        self._frames = self._bytes = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path), "w")
        self._stream = self._container.add_stream(self.codec, rate=self._rate, options=dict(_CODECS[self.codec]))
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.time_base = 1 / self._rate

    def _encode(self, image: NDArray[np.uint8]) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self._frames
        frame.time_base = 1 / self._rate
        for packet in self._stream.encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)
        self._frames += 1


def choose_codec(size: tuple[int, int]) -> str:
    """Return the encoder for frames of `size`: AV1 where PyAV has it and it takes frames that small, else H.264.

    Raises:
        MissingExtraError: PyAV has neither.
    """
    os.environ.setdefault("SVT_LOG", "1")  # the encoder prints its settings otherwise
    names = ("libsvtav1", "libx264") if min(size) >= _SMALLEST_AV1 else ("libx264",)
    for name in names:
        if name in av.codecs_available:
            return name
    raise MissingExtraError(f"a video encoder ({' or '.join(names)}) for PyAV", "data")


def video_seconds(path: Path) -> float | None:
    """Return how long a video is, as its header says; None if it does not.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    with reading(path, *_DAMAGE), av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)


def decode_frames(path: Path, timestamps: Sequence[float], fps: float) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a video shown at `timestamps` (seconds, ascending), each uint8 `[H, W, 3]`.

    Raises:
        DatasetError: the file is missing or damaged, or no frame lies within a quarter frame of a timestamp.
    """
    if not len(timestamps):
        return
    with reading(path, *_DAMAGE), av.open(str(path)) as container:
        yield from _matching_frames(container, timestamps, 0.25 / fps, path)


def _matching_frames(
    container: Any, timestamps: Sequence[float], tolerance: float, path: Path
) -> Iterator[NDArray[np.uint8]]:
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    refuse_depth(stream.codec_context.pix_fmt, path)
    wanted = 0
    for frame in _frames_from(container, stream, timestamps[0], tolerance):
        shown = float(frame.pts * stream.time_base)
        if shown < timestamps[wanted] - tolerance:
            continue
        if shown > timestamps[wanted] + tolerance:
            break
        pixels = frame.to_ndarray(format="rgb24")
        while wanted < len(timestamps) and abs(shown - timestamps[wanted]) <= tolerance:
            yield pixels
            wanted += 1
        if wanted == len(timestamps):
            return
    raise DatasetError(
        f"'{path}' has no frame at {timestamps[wanted]:.4f} s (frame {wanted} of {len(timestamps)} asked for): "
        "the timestamps are not the frames' (`rdvla dataset check` says how far off; data.timestamps=frame_index reads "
        "evenly spaced frames by number), or the video is shorter than meta/episodes says."
    )


def _frames_from(container: Any, stream: Any, second: float, tolerance: float) -> Iterator[Any]:
    """Yield decoded frames from `second` or before it on.

    The keyframe before a frame may be shown after it (HEVC with an open group of pictures), and what leads up to that
    keyframe is not decoded: then it is sought further back.
    """
    back = 0.0
    while True:
        begin = max(second - tolerance - back, 0.0)
        container.seek(int(begin / stream.time_base), stream=stream, backward=True)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            return
        if begin == 0 or float(first.pts * stream.time_base) <= second + tolerance:
            yield first
            yield from frames
            return
        back = 2 * back + 1.0


def refuse_depth(pixel_format: str | None, path: Path) -> None:
    """Make sure that a video shows colours: one grey channel of more than 8 bits is depth, of a scale nobody knows.

    Colour of 10 or 12 bits is brought to 8 by FFmpeg.

    Raises:
        DatasetError: it is such a video.
    """
    if pixel_format is not None and pixel_format.startswith("gray") and pixel_format != "gray":
        raise DatasetError(
            f"'{path}' is a video of depth ({pixel_format}), not of colours; leave this camera out (data.cameras)."
        )


def seconds(frame: int, fps: float) -> float:
    """Return when frame number `frame` is shown."""
    return float(Fraction(frame) / frame_rate(fps))
