"""The one way to write: a file or folder that is whole or absent, a line that is whole, a folder with one owner.

Whatever the operating system refuses becomes a `StorageError` that names the path and the fix.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, RDVLAError, StorageError

LOCK = ".lock"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DAMAGED_ARRAYS = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError,
    tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What `read_arrays` raises of a file that is missing, cut or changed."""

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
        StorageError: disk or quota full, no permission, read-only file system, a file in a folder's place, ...
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"cannot write '{path}': a file stands where a folder is needed; move it away.") from None
    except OSError as error:
        reason = _REFUSALS.get(error.errno or 0) or f"{error.strerror or error}"
        raise StorageError(f"cannot write '{path}': {reason}.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a draft beside `path` that takes its place, in one step, when the block ends well and vanishes otherwise.

    Readers see the old file or the whole new one, even after a crash. Missing folders are made.

    Raises:
        StorageError: the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            _flush(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8) in one step.

    Raises:
        StorageError: the disk refuses; nothing is left behind.
    """
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Replace `path` by `content` as JSON, in one step.

    Raises:
        StorageError: the disk refuses.
        ValueError: a number that JSON does not have (nan, infinity): a defect of the caller.
    """
    write_atomically(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def require_new_folder(destination: Path) -> None:
    """Make sure that a folder may be written at `destination`: nothing is there, or an empty folder.

    Raises:
        StorageError: something is.
    """
    if destination.exists() and not _is_empty_folder(destination):
        raise StorageError(f"'{destination}' already exists; choose another directory or remove it first.")


@contextmanager
def replacing_folder(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` when the block ends well, and vanishes otherwise.

    Args:
        destination: where the files shall be.
        replace: replace a folder that is already there (it stays until the new one is complete).

    Raises:
        StorageError: `destination` exists and may not be replaced, or the disk refuses.
    """
    destination = destination.absolute()
    if not replace:
        require_new_folder(destination)
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
        try:
            yield draft
            for path in [*draft.rglob("*"), draft]:
                _flush(path)
            draft.chmod(0o755)
            if replace:
                _exchange(draft, destination)
            else:
                _put(draft, destination)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Append `line` and a newline, and wait until it is on the disk; a file that cannot take it stays as it was.

    Raises:
        StorageError: the disk refuses.
    """
    with writing(path), path.open("ab") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = line.encode() + b"\n"
        try:
            if os.write(stream.fileno(), content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file; a last one without its newline is still being written and left out."""
    return path.read_bytes().rpartition(b"\n")[0].decode("utf-8").splitlines()


def cut_torn_line(path: Path) -> None:
    """Remove what a killed writer left after the last complete line.

    Raises:
        StorageError: the disk refuses.
    """
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with writing(path):
            os.truncate(path, complete)


@contextmanager
def owned_folder(folder: Path, *, busy: str) -> Iterator[None]:
    """Own `folder` while the block runs; it is made if needed. The lock ends with the process, however it ends.

    Where the block leaves nothing, the folder is removed again (as far as it is empty).

    Args:
        folder: what to own.
        busy: what to say if another process owns it.

    Raises:
        ConfigError: another process owns it; the message is `busy`.
        StorageError: the disk refuses.
    """
    with _locked(folder, busy):
        try:
            yield
        finally:
            with suppress(OSError):  # already gone
                (folder / LOCK).unlink()
            with suppress(OSError):  # something is in it
                folder.rmdir()


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read an `.npz` file of plain arrays: all of them, or those called `names`.

    Raises:
        Exception: one of `DAMAGED_ARRAYS`.
    """
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in (file.files if names is None else names)}


def refuse_pointer(path: Path, error: type[RDVLAError]) -> None:
    """Make sure that a file is itself and not what a clone without Git LFS leaves in its place.

    Raises:
        RDVLAError: of type `error`: it is a Git LFS pointer.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise error(
            f"'{path}' is a Git LFS pointer, not the file itself: run `git lfs pull` in that clone (git-lfs has to be "
            "installed), or download the file."
        )


def read_json(path: Path, error: type[RDVLAError], fix: str, *, missing: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        error: what to raise.
        fix: what to do about a damaged file, for the message.
        missing: what it means that there is none, likewise; empty stands for `fix`.

    Raises:
        RDVLAError: of type `error`: the file is missing, a Git LFS pointer, not JSON, or no object.
    """
    try:
        refuse_pointer(path, error)
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"'{path}' is missing; {missing or fix}.") from None
    except OSError as reason:
        raise error(f"'{path}' cannot be read ({reason.strerror}); {fix}.") from None
    except ValueError as reason:
        raise error(f"'{path}' is not valid JSON ({reason}); {fix}.") from None
    if not isinstance(content, dict):
        raise error(f"'{path}' must hold a JSON object, found {type(content).__name__}; {fix}.")
    return content


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, and below folders that it links to, each of which is entered once."""
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (path for name in names if (path := Path(parent) / name).is_file())


def user_cache() -> Path:
    """Return the folder for files that can be rebuilt: `$XDG_CACHE_HOME/rdvla` if absolute, else `~/.cache/rdvla`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "rdvla"


def _locked(folder: Path, busy: str) -> TextIO:
    """Return the open lock file of `folder`; an owner that ends may remove it, so it is looked at twice."""
    path = folder / LOCK
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise ConfigError(busy) from None
        except OSError as error:
            stream.close()
            raise StorageError(
                f"cannot lock '{path}': {error.strerror}; its file system has no locks (Lustre, say, mounted without "
                "flock): choose a folder on another one."
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()


def _put(draft: Path, destination: Path) -> None:
    try:
        draft.rename(destination)
    except OSError:
        require_new_folder(destination)  # another process was quicker
        raise


def _exchange(draft: Path, destination: Path) -> None:
    if destination.exists() and not _is_empty_folder(destination):
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


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut after the rename loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
