"""Writing files so that they are whole or absent, and saying plainly when the disk refuses."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdvla.errors import StorageError

_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space and repeat the command",
    errno.EDQUOT: "the disk quota is used up; free some space and repeat the command",
    errno.EFBIG: "the file would exceed the allowed size; raise the limit or write elsewhere",
    errno.EACCES: "no permission; choose a folder you may write to",
    errno.EPERM: "no permission; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into errors that name `path` and the fix.

    Raises:
        StorageError: disk or quota full, no permission, read-only file system, or a file in a folder's place.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"cannot write '{path}': a file stands where a folder is needed; move it away.") from None
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"cannot write '{path}': {_REFUSALS[error.errno]}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: readers see the old file or the whole new one, even after a crash.

    Raises:
        StorageError: the disk refuses; nothing is left behind.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def user_cache() -> Path:
    """Return the folder for files that can be rebuilt: `$XDG_CACHE_HOME/rdvla`, else `~/.cache/rdvla`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rdvla"
