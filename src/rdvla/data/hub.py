"""From a path or a Hugging Face id to the local folder of a dataset."""

from pathlib import Path

from rdvla import hub
from rdvla.errors import DatasetError

_FILES = ("meta/**", "data/**", "videos/**", "images/**", "README.md")


def resolve(root: Path | str) -> Path:
    """Return the local folder of a dataset.

    Args:
        root: a folder, or `owner/name` or `owner/name@revision` on the Hugging Face hub, which is downloaded once and
            taken from the cache when offline. What exists locally wins.

    Raises:
        DatasetError: no such folder, or the hub does not have it or cannot be reached and the cache is empty.
    """
    if Path(root).expanduser().is_dir():
        return Path(root).expanduser()
    name, _, revision = str(root).partition("@")
    return hub.resolve(name, kind="dataset", error=DatasetError, patterns=_FILES, revision=revision or None)
