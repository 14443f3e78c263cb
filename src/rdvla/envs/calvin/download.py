"""Fetches the play table's data files from the public repository, each of them whole and genuine."""

import hashlib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from pathlib import Path

from rdvla.envs.calvin.assets import VARIABLE, manifest, missing_files
from rdvla.errors import ConfigError
from rdvla.files import write_atomically

_TIMEOUT_S = 30
_AT_ONCE = 8


def default_source() -> str:
    """Return where the pinned revision is: a web address to which a file's path is appended."""
    return f"https://raw.githubusercontent.com/{manifest().repository}/{manifest().revision}"


def download(folder: Path, *, source: str, on_file: Callable[[str], None]) -> None:
    """Fetch what `missing_files` names. What has arrived stays, so that a repeated call continues.

    Args:
        folder: where `conf/` and `data/` shall be.
        source: see `default_source`.
        on_file: told the path of every file that has arrived.

    Raises:
        ConfigError: a file cannot be fetched, or is not the published one; the message says what to do.
        StorageError: the disk refuses.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tasks = [pool.submit(_fetch, source, path, folder) for path in missing_files(folder)]
        try:
            for task in as_completed(tasks):
                on_file(task.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(source: str, path: str, folder: Path) -> str:
    address = f"{source.rstrip('/')}/{urllib.parse.quote(path)}"
    size, digest = manifest().files[path]
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response:
            content: bytes = response.read(size + 1)
    except (OSError, ValueError, HTTPException) as error:  # URLError and HTTPError are OSErrors
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise ConfigError(f"'{address}' could not be fetched ({reason}). {_without_internet()}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(f"'{address}' is not the published file (checksum). {_without_internet()}")
    write_atomically(folder / path, content)
    return path


def _without_internet() -> str:
    pinned = manifest()
    return (
        f"Repeat the command to continue. Without internet: on another machine, `git clone "
        f"https://github.com/{pinned.repository}` and `git checkout {pinned.revision[:7]}`, copy its folders conf/ and "
        f"data/ here, and name the folder that holds them with --calvin-data or {VARIABLE}."
    )
