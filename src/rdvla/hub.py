"""Between a local directory and the Hugging Face hub: found and downloaded, or uploaded."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdvla.errors import CheckpointError, DatasetError, RDVLAError, suggest

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


def resolve(
    source: str | Path, kind: Kind, *, revision: str | None = None, download: Mapping[str, Any] | None = None
) -> Path:
    """Return a local directory; what is on the hub is downloaded once, or taken from the cache when offline.

    Args:
        source: a directory, `owner/name` or `owner/name@revision` on the Hugging Face hub, or for a checkpoint the name
            of a policy that comes with the installation (`rdvla_tiny_libero`). What exists locally wins.
        kind: what is looked for.
        revision: branch, tag or commit of a hub id, instead of `@revision`.
        download: further arguments of huggingface_hub's `snapshot_download`, e.g. `token`.

    Raises:
        CheckpointError, DatasetError: no such directory, or the hub does not have it or cannot be reached and the cache
            is empty.
    """
    path = local(source, kind)
    if path is not None:
        if revision is not None:
            raise kind.error(f"'{path}' is a local directory; a revision ('{revision}') belongs to a hub id.")
        return path
    name, _, at = str(source).partition("@")
    if Path(source).expanduser().is_file():
        raise kind.error(f"'{source}' is a file; name the {kind.name} directory that it lies in.")
    if not _HUB_ID.fullmatch(name):
        shipped = [path.parent.name for path in _shipped().glob("*/config.json")] if kind is CHECKPOINT else []
        meant = suggest(str(source), shipped) if shipped and re.fullmatch(r"[\w-]+", str(source)) else ""
        raise kind.error(f"no {kind.name} directory at '{source}' (a hub id looks like 'owner/name').{meant}")
    if at and revision not in (None, at):
        raise kind.error(f"'{source}' names a revision, and so does '{revision}'; keep one.")
    return _download(name, kind, revision or at or None, download or {})


def local(source: str | Path, kind: Kind) -> Path | None:
    """Return the directory `source`, for a checkpoint also that of a shipped policy; None if there is none here."""
    path = Path(source).expanduser()
    if path.is_dir() and str(source).strip():  # an empty variable of a shell is not the present folder
        return path
    shipped = _shipped() / str(source)
    return shipped if kind is CHECKPOINT and re.fullmatch(r"[\w-]+", str(source)) and shipped.is_dir() else None


@dataclass(frozen=True)
class Repository:
    """Where to upload to.

    Attributes:
        name: `owner/name`.
        kind: what is uploaded.
        public: everybody may see it; else its owner alone.
        revision: the branch, made if there is none; None is `main`.
        tag: moved to what is uploaded; None moves none.

    Raises:
        CheckpointError, DatasetError: `name` is no hub id.
    """

    name: str
    kind: Kind
    public: bool = False
    revision: str | None = None
    tag: str | None = None

    def __post_init__(self) -> None:
        if not _HUB_ID.fullmatch(self.name):
            raise self.kind.error(f"'{self.name}' is no place on the hub: it looks like 'owner/name'.")


def require_token(kind: Kind) -> None:
    """Make sure that somebody is logged in.

    Raises:
        CheckpointError, DatasetError: nobody is.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise kind.error("no token for the hub: log in with `hf auth login`, or set HF_TOKEN to one that may write.")


def upload(folder: Path, to: Repository, *, message: str) -> str:
    """Make the repository hold the files of `folder`, and return the commit.

    What is there already is not sent again, so repeating an upload that broke off continues it. Files of this kind that
    `folder` does not have are removed there.

    Args:
        folder: every file below it is uploaded.
        to: where to.
        message: of the commit.

    Raises:
        CheckpointError, DatasetError: nobody is logged in, the token may not write, the repository has another
            visibility, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    require_token(to.kind)
    api = HfApi(library_name="rdvla")
    names: dict[str, Any] = {"repo_id": to.name, "repo_type": to.kind.repo_type}
    with _refusals(to):
        api.create_repo(**names, private=not to.public, exist_ok=True)
        if api.repo_info(**names).private == to.public:
            state, option = ("private", "without --public") if to.public else ("public", "with --public")
            raise to.kind.error(f"'{to.name}' exists and is {state}; repeat {option}, or choose another name.")
        if to.revision is not None:
            api.create_branch(**names, branch=to.revision, exist_ok=True)
        commit = api.upload_folder(
            **names,
            folder_path=folder,
            revision=to.revision,
            commit_message=message,
            delete_patterns=list(to.kind.patterns),
        ).oid
        if to.tag is not None:
            if any(tag.name == to.tag for tag in api.list_repo_refs(**names).tags):
                api.delete_tag(**names, tag=to.tag)
            api.create_tag(**names, tag=to.tag, revision=commit)
    return str(commit)


@contextmanager
def _refusals(to: Repository) -> Iterator[None]:
    """Turn what the hub refuses inside the block into one sentence with the fix."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as cause:
        raise to.kind.error("HF_HUB_OFFLINE forbids to upload; unset it.") from cause
    except HfHubHTTPError as cause:
        status = cause.response.status_code
        if status == 400:
            raise _invalid(to, cause) from cause
        if status == 401:
            raise to.kind.error("the hub does not accept the token; log in again with `hf auth login`.") from cause
        if status in (403, 404):
            raise to.kind.error(
                f"the token may not write to '{to.name}': it has to have the role 'write', and the owner has to be you "
                f"or an organisation of yours ({_first_line(cause)})."
            ) from cause
        raise _unfinished(to, cause) from cause
    except (_http_error(), OSError, RuntimeError, ValueError) as cause:
        below = cause.__cause__ or cause
        if isinstance(below, HfHubHTTPError) and below.response.status_code == 400:  # how the library checks a card
            raise _invalid(to, below) from cause
        raise _unfinished(to, below) from cause


def _http_error() -> Any:
    """Return what everything that the library's HTTP client raises is, whichever client this version has."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _invalid(to: Repository, cause: Any) -> RDVLAError:
    """Return the error of an upload that the hub will never take; `server_message` has its reasons, one a line."""
    reasons = [line.strip() for line in (cause.server_message or _first_line(cause)).splitlines()]
    source = "--license, --dataset and --base-model" if to.kind is CHECKPOINT else "--license and README.md"
    return to.kind.error(
        f"the hub refuses what was sent to '{to.name}': {'; '.join(reasons)}. Mend that and repeat the command; the "
        f"facts of its card come from {source}."
    )


def _unfinished(to: Repository, cause: BaseException) -> RDVLAError:
    return to.kind.error(
        f"the upload to '{to.name}' was not finished ({_first_line(cause)}); repeat the command to continue it."
    )


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _shipped() -> Path:
    """Return the folder of the shipped policies: beside the modules of a built package, else in the repository."""
    package = Path(__file__).parent
    built = package / "shipped"
    return built if built.is_dir() else package.parents[1] / "checkpoints"


def _download(name: str, kind: Kind, revision: str | None, options: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error, patterns = kind.error, list(kind.patterns)
    try:
        found: Any = snapshot_download(
            name, repo_type=kind.repo_type, revision=revision, allow_patterns=patterns, **options
        )
        return Path(found)
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
    except HFValidationError as cause:
        raise error(f"could not download '{name}': {cause}") from cause
    except (_http_error(), OSError) as cause:
        raise error(f"could not download '{name}' ({cause}); repeat the command to continue.") from cause
