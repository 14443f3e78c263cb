"""pybullet, quietly: one client per simulation, and the renderer that works here.

pybullet and its renderer print from C to both standard streams, and the renderer ends the process where it finds no
device. Neither reaches the user: output goes to this module's logger at level debug, and the renderer is tried in a
process of its own first.
"""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Literal, cast

from rdvla.errors import ConfigError, MissingExtraError, SimulatorError

Renderer = Literal["egl", "tiny"]

VARIABLE = "RDVLA_CALVIN_RENDERER"

logger = logging.getLogger(__name__)

_LINES_TOLD = 3

_INSTALL = "On Debian or Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri."

_DRAWS = "_RDVLA_EGL_DRAWS"  # not of the user, and not for other machines as `RDVLA_...` is
"""Set for the processes that are started from here once EGL has drawn, so that they need not try."""
_PROBE_SECONDS = 60
_PROBE = (
    "import importlib.util, pybullet as p; c = p.connect(p.DIRECT, options='--width=8 --height=8'); "
    "plugin = importlib.util.find_spec('eglRenderer').origin; "
    "assert p.loadPlugin(plugin, '_eglRendererPlugin', physicsClientId=c) >= 0; "
    "p.getCameraImage(8, 8, physicsClientId=c); print('drawn')"
)


class Client:
    """pybullet's functions, with the number of one simulation filled in."""

    def __init__(self, renderer: Renderer, size: tuple[int, int]) -> None:
        """Connect a new, empty simulation in this process.

        Args:
            renderer: how its pictures will be drawn.
            size: height and width of the largest picture.

        Raises:
            MissingExtraError: pybullet is not installed.
            SimulatorError: pybullet gives no simulation, or no renderer.
        """
        self._pybullet = import_pybullet()
        options = f"--width={size[1]} --height={size[0]}" if renderer == "egl" else ""
        self._number: int = self._pybullet.connect(self._pybullet.DIRECT, options=options)
        if self._number < 0:
            raise SimulatorError("pybullet starts no further simulation in this process; close those no longer needed.")
        if renderer == "egl" and self.loadPlugin(_egl_plugin(), "_eglRendererPlugin") < 0:
            self.disconnect()
            raise SimulatorError(f"pybullet's EGL renderer does not load here; set {VARIABLE}=tiny.")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pybullet, name)
        if callable(found):
            found = functools.partial(found, physicsClientId=self._number)
        setattr(self, name, found)
        return found


@functools.cache
def import_pybullet() -> Any:
    """Import pybullet.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with quietly():
            import pybullet
    except ImportError as error:
        raise MissingExtraError("pybullet", "calvin") from error
    return pybullet


def choose_renderer() -> Renderer:
    """Return the user's renderer, else `egl` if it draws here, else `tiny`; processes started later take the same.

    Raises:
        ConfigError: the user's is neither.
        MissingExtraError: pybullet is not installed.
        SimulatorError: it is `egl`, which does not draw here.
    """
    chosen = os.environ.get(VARIABLE, "").strip().lower()
    if chosen not in ("", "egl", "tiny"):
        raise ConfigError(f"{VARIABLE} = '{chosen}': the renderers are egl and tiny.")
    if chosen != "tiny" and not _egl_draws():
        if chosen == "egl":
            raise SimulatorError(f"{VARIABLE} = 'egl': EGL does not draw here. {_INSTALL} Or set {VARIABLE}=tiny.")
        logger.warning(
            "EGL does not draw here, so CALVIN's pictures come from pybullet's TinyRenderer, about 20 grey levels from "
            "the published ones. %s To choose it without this message, set %s=tiny.",
            *(_INSTALL, VARIABLE),
        )
        chosen = "tiny"
    os.environ[VARIABLE] = chosen = chosen or "egl"
    return cast(Renderer, chosen)


@contextlib.contextmanager
def quietly() -> Iterator[list[str]]:
    """Keep what C code prints inside the block from the streams; after it, the yielded list has the lines."""
    printed: list[str] = []
    with tempfile.TemporaryFile() as captured:
        try:
            with _redirected(captured.fileno()):
                yield printed
        finally:
            captured.seek(0)
            printed += captured.read().decode(errors="replace").splitlines()
            for line in printed:
                logger.debug("pybullet: %s", line.rstrip())


@contextlib.contextmanager
def guarded(what: str) -> Iterator[list[str]]:
    """Keep pybullet quiet inside the block, as `quietly` does, and turn its errors into a `SimulatorError`."""
    error, printed = import_pybullet().error, []
    try:
        with quietly() as printed:
            yield printed
    except error as cause:
        said = "; ".join(line.strip() for line in printed[-_LINES_TOLD:] if line.strip())
        raise SimulatorError(f"{what} failed in pybullet: {cause}" + (f" It says: {said}" if said else "")) from cause


@contextlib.contextmanager
def _redirected(target: int) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in saved:
            os.dup2(target, stream)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)


def _egl_plugin() -> str:
    spec = importlib.util.find_spec("eglRenderer")
    return "" if spec is None or spec.origin is None else spec.origin


@functools.cache
def _egl_draws() -> bool:
    import_pybullet()
    if os.environ.get(_DRAWS):
        return True
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        probe = None
    draws = probe is not None and probe.returncode == 0 and b"drawn" in probe.stdout
    if draws:
        os.environ[_DRAWS] = "yes"
    return draws
