"""From a path, the name of a shipped policy or a Hugging Face id to a local directory."""

import re
from dataclasses import dataclass
from pathlib import Path

from rdvla.errors import CheckpointError, DatasetError, RDVLAError

SHIPPED = "rdvla_tiny_libero"
"""The policy that comes with the installation."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Kind:
    """What can be looked for.

    Attributes:
        name: for messages.
        repo_type: the hub's word.
        error: raised when it is not found.
        patterns: the files to download; no Python among them, as what is looked for is data.
    """

    name: str
    repo_type: str
    error: type[RDVLAError]
    patterns: tuple[str, ...]


CHECKPOINT = Kind("checkpoint", "model", CheckpointError, ("*.json", "*.safetensors", "*.pt", "*.bin", "*.txt"))
DATASET = Kind("dataset", "dataset", DatasetError, ("meta/**", "data/**", "videos/**", "images/**", "README.md"))


def resolve(source: str | Path, kind: Kind, *, revision: str | None = None) -> Path:
    """Return a local directory; what is on the hub is downloaded once, or taken from the cache when offline.

    Args:
        source: a directory, `owner/name` or `owner/name@revision` on the Hugging Face hub, or for a checkpoint the name
            of a policy that comes with the installation (`rdvla_tiny_libero`). What exists locally wins.
        kind: what is looked for.
        revision: branch, tag or commit of a hub id, instead of `@revision`.

    Raises:
        CheckpointError, DatasetError: no such directory, or the hub does not have it or cannot be reached and the cache
            is empty.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise kind.error(f"'{path}' is a local directory; a revision ('{revision}') belongs to a hub id.")
        return path
    shipped = _shipped() / str(source)
    if kind is CHECKPOINT and re.fullmatch(r"[\w-]+", str(source)) and shipped.is_dir():
        return shipped
    name, _, at = str(source).partition("@")
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise kind.error(f"no {kind.name} directory at '{source}' (a hub id looks like 'owner/name').")
    if at and revision not in (None, at):
        raise kind.error(f"'{source}' names a revision, and so does '{revision}'; keep one.")
    return _download(name, kind, revision or at or None)


def _shipped() -> Path:
    """Return the folder of the shipped policies: beside the modules of a built package, else in the repository."""
    package = Path(__file__).parent
    built = package / "shipped"
    return built if built.is_dir() else package.parents[1] / "checkpoints"


def _download(name: str, kind: Kind, revision: str | None) -> Path:
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

    error, patterns = kind.error, list(kind.patterns)
    try:
        return Path(snapshot_download(name, repo_type=kind.repo_type, revision=revision, allow_patterns=patterns))
    except GatedRepoError as cause:
        raise error(f"'{name}' needs permission on the hub; request it there, then log in.") from cause
    except RepositoryNotFoundError as cause:
        raise error(f"no directory '{name}' here, and no such {kind.name} on the hub.") from cause
    except RevisionNotFoundError as cause:
        raise error(f"'{name}' has no revision '{revision}' on the hub.") from cause
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as cause:
        raise error(
            f"no directory '{name}' here, the hub cannot be reached, and its cache does not hold "
            f"revision '{revision or 'main'}'; connect once, or copy the {kind.name} to a directory."
        ) from cause
    except (HfHubHTTPError, HFValidationError, OSError) as cause:
        raise error(f"could not download '{name}': {cause}") from cause
