"""Films of episodes (mp4, H.264) that show what the policy was told, and how long it thought about what it does."""

import tempfile
import textwrap
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rdvla.errors import MissingExtraError

EVERY = 2
"""Control steps per picture."""

_SIDE = 384
_WORDS, _STRIP = 40, 56
_HEIGHT = _SIDE + _WORDS + _STRIP
_LETTERS = 56
_INK, _FAINT, _BACK, _DOT = (235, 236, 240), (150, 154, 165), (24, 26, 32), (242, 142, 43)
_UNLIT = (62, 66, 76)


def annotate(image: NDArray[np.uint8], *, words: str, iterations: int, max_depth: int | None) -> NDArray[np.uint8]:
    """Return the picture at 384 pixels width; below it the instruction, and the iterations as a number and as dots.

    Args:
        image: uint8 `[H, W, 3]`, square.
        words: what the policy is told; beyond two lines it is cut.
        iterations: iterations of the decision being executed.
        max_depth: how many there could have been; None shows only those made. Without any iteration (a policy that
            has none) the strip stays empty.

    Returns:
        uint8 `[480, 384, 3]`.
    """
    canvas = Image.new("RGB", (_SIDE, _HEIGHT), _BACK)
    canvas.paste(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(canvas)
    lines = textwrap.wrap(words, _LETTERS, max_lines=2, placeholder=" ...")
    small = ImageFont.load_default(13)
    draw.multiline_text((14, _SIDE + 26), "\n".join(lines), font=small, fill=_INK, anchor="lm", spacing=4)
    if iterations:
        _draw_thinking(draw, _SIDE + _WORDS, iterations, max_depth)
    return np.asarray(canvas, dtype=np.uint8)


def _draw_thinking(draw: ImageDraw.ImageDraw, top: int, iterations: int, max_depth: int | None) -> None:
    draw.text((14, top + 28), f"{iterations}", font=ImageFont.load_default(30), fill=_INK, anchor="lm")
    noun = "thinking step" if iterations == 1 else "thinking steps"
    draw.text((60, top + 16), noun, font=ImageFont.load_default(13), fill=_FAINT, anchor="lm")
    slots = max(iterations, max_depth or 0)
    pitch = min(18.0, (_SIDE - 60 - 14) / slots)
    radius = min(5.0, pitch * 0.36)
    for slot in range(slots):
        x, y = 60 + pitch * (slot + 0.5), top + 37
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_DOT if slot < iterations else _UNLIT)


class Film:
    """Encodes the pictures of one episode, as they come, as an mp4 that browsers play (H.264)."""

    def __init__(self, control_hz: int) -> None:
        """Start a film of a robot with so many control steps per second.

        Raises:
            MissingExtraError: PyAV is not installed.
        """
        self._av, self._fps = require_av(), max(1, control_hz // EVERY)
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "film.mp4"
        self._container = self._av.open(str(self._path), "w", format="mp4", options={"movflags": "+faststart"})
        settings = {"crf": "27", "preset": "veryfast", "threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=settings)
        self._stream.width, self._stream.height, self._stream.pix_fmt = _SIDE, _HEIGHT, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, self._fps)
        self._last: NDArray[np.uint8] | None = None

    def wants(self, step: int) -> bool:
        """Return whether the picture after `step` control steps is wanted: every second one."""
        return step % EVERY == 0

    def add(self, image: NDArray[np.uint8], *, words: str, iterations: int, max_depth: int | None) -> None:
        """Add a picture `[H, W, 3]`, annotated."""
        self._last = annotate(image, words=words, iterations=iterations, max_depth=max_depth)
        self._write(self._last)

    def encode(self) -> bytes:
        """Return the film as an mp4 file, at the speed of the robot; its last picture is held for a second."""
        if self._last is not None:
            for _ in range(self._fps):
                self._write(self._last)
        self._container.mux(self._stream.encode(None))
        self._container.close()
        with self._folder:
            return self._path.read_bytes()

    def _write(self, frame: NDArray[np.uint8]) -> None:
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24")))


def require_av() -> ModuleType:
    """Return PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "report") from None
    module: ModuleType = av
    return module
