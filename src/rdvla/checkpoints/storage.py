"""Directories that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rdvla.errors import StorageError


@contextmanager
def atomic_directory(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes `destination` when the block ends well, and vanishes otherwise.

    Args:
        destination: where the files shall be.
        replace: replace a directory that is already there (it stays until the new one is complete).

    Raises:
        StorageError: `destination` exists and may not be replaced, or writing fails (disk full, no permission).
    """
    destination = destination.absolute()
    if destination.exists() and not replace and not _is_empty_directory(destination):
        raise StorageError(f"'{destination}' already exists; choose another directory or remove it first.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    except OSError as error:
        raise StorageError(f"cannot write beside '{destination}': {error}.") from error
    try:
        yield draft
        _flush(draft)
        draft.chmod(0o755)
        _publish(draft, destination)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"could not write '{destination}': {error}. Nothing was left half-written.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, destination: Path) -> None:
    if destination.exists() and not _is_empty_directory(destination):
        previous = draft.with_suffix(".old")
        destination.rename(previous)
        try:
            draft.rename(destination)
        except OSError:
            previous.rename(destination)
            raise
        shutil.rmtree(previous)
    else:
        draft.rename(destination)


def _flush(directory: Path) -> None:
    """Wait until every file is on the disk, so that a power cut after the rename loses nothing."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
