"""From a path or a Hugging Face id to a local checkpoint directory."""

from pathlib import Path

from rdvla import hub
from rdvla.errors import CheckpointError

# No Python files: a checkpoint is data.
_FILES = ("*.json", "*.safetensors", "*.pt", "*.txt")


def resolve(path_or_hub_id: str | Path, *, revision: str | None = None) -> Path:
    """Return a local directory; a hub id is downloaded once, or taken from the cache when offline.

    Args:
        path_or_hub_id: a directory, or `owner/name` on the Hugging Face hub. What exists locally wins.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: no such directory, or the hub does not have it or cannot be reached and the cache is empty.
    """
    return hub.resolve(path_or_hub_id, kind="checkpoint", error=CheckpointError, patterns=_FILES, revision=revision)
