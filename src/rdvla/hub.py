"""From a path, the name of a shipped policy or a Hugging Face id to a local directory."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rdvla.errors import RDVLAError

SHIPPED = "rdvla_tiny_libero"
"""The policy that comes with the installation."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    path_or_hub_id: str | Path,
    *,
    kind: Literal["checkpoint", "dataset"],
    error: type[RDVLAError],
    patterns: Sequence[str],
    revision: str | None = None,
) -> Path:
    """Return a local directory; a hub id is downloaded once, or taken from the cache when offline.

    Args:
        path_or_hub_id: a directory, `owner/name` on the Hugging Face hub, or for a checkpoint the name of a policy that
            comes with the installation (`rdvla_tiny_libero`). What exists locally wins.
        kind: what is looked for, for the hub and for messages.
        error: raised when it is not found.
        patterns: the files to download.
        revision: branch, tag or commit of a hub id.

    Raises:
        RDVLAError: of type `error`: no such directory, or the hub does not have it or cannot be reached and the cache
            is empty.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise error(f"'{path}' is a local directory; a revision ('{revision}') belongs to a hub id.")
        return path
    name = str(path_or_hub_id)
    shipped = _shipped() / name
    if kind == "checkpoint" and re.fullmatch(r"[\w-]+", name) and shipped.is_dir():
        return shipped
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise error(f"no {kind} directory at '{name}' (a hub id looks like 'owner/name').")
    return _download(name, kind, error, list(patterns), revision)


def _shipped() -> Path:
    """Return the folder of the shipped policies: beside the modules of a built package, else in the repository."""
    package = Path(__file__).parent
    built = package / "shipped"
    return built if built.is_dir() else package.parents[1] / "checkpoints"


def _download(name: str, kind: str, error: type[RDVLAError], patterns: list[str], revision: str | None) -> Path:
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

    repo_type = "dataset" if kind == "dataset" else "model"
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=patterns))
    except GatedRepoError as cause:
        raise error(f"'{name}' needs permission on the hub; request it there, then log in.") from cause
    except RepositoryNotFoundError as cause:
        raise error(f"no directory '{name}' here, and no such {kind} on the hub.") from cause
    except RevisionNotFoundError as cause:
        raise error(f"'{name}' has no revision '{revision}' on the hub.") from cause
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as cause:
        raise error(
            f"no directory '{name}' here, the hub cannot be reached, and its cache does not hold "
            f"revision '{revision or 'main'}'; connect once, or copy the {kind} to a directory."
        ) from cause
    except (HfHubHTTPError, HFValidationError, OSError) as cause:
        raise error(f"could not download '{name}': {cause}") from cause
