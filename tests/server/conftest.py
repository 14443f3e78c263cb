"""A virtual environment with the stock openpi client, made once and kept in the user's cache."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rdvla.files import user_cache

PACKAGES = ["openpi-client==0.1.2", "typing-extensions"]  # the second is imported by the first, and not declared
IMPORTS = "from openpi_client import action_chunk_broker, image_tools, websocket_client_policy"


@pytest.fixture(scope="session")
def openpi_python() -> Path:
    """Return the Python of an environment with PyPI's openpi-client (it wants numpy < 2)."""
    cache = user_cache() / "openpi-client-0.1.2"
    python = cache / "bin" / "python"
    if not _works(python):
        cache.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="openpi-", dir=cache.parent))
        try:
            _run([sys.executable, "-m", "venv", str(made)])
            _run([str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES])
            _run([str(made / "bin" / "python"), "-c", IMPORTS])
        except subprocess.SubprocessError as error:
            shutil.rmtree(made)
            output = getattr(error, "stderr", b"") or b""
            pytest.skip(f"no environment for openpi-client can be made: {output.decode()[-300:] or error}")
        shutil.rmtree(cache, ignore_errors=True)
        made.rename(cache)
    return python


def _works(python: Path) -> bool:
    if not python.exists():
        return False
    found = subprocess.run(
        [python, "-c", "import openpi_client.websocket_client_policy"], capture_output=True, check=False
    )
    return found.returncode == 0


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
