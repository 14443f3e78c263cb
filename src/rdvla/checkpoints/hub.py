"""From a path or a Hugging Face id to a local directory."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rdvla.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"'{path}' is a local directory; a revision ('{revision}') belongs to a hub id.")
        return path
    name = str(path_or_hub_id)
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"no checkpoint directory at '{name}' (a hub id looks like 'owner/name').")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except GatedRepoError as error:
        raise CheckpointError(f"'{name}' needs permission on the hub; request it there, then log in.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"no directory '{name}' here, and no such repository on the hub.") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"'{name}' has no revision '{revision}' on the hub.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"no directory '{name}' here, the hub cannot be reached, and its cache does not hold "
            f"revision '{revision or 'main'}'; connect once, or copy the checkpoint to a directory."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"could not download '{name}': {error}") from error
