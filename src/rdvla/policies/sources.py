"""Policies by name for the evaluator: functions that worker processes can import."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rdvla.errors import CheckpointError, ConfigError, ServeError
from rdvla.experts.policy import ExpertPolicy
from rdvla.hub import CHECKPOINT, resolve
from rdvla.policy import Policy
from rdvla.types import GripperConvention

if TYPE_CHECKING:
    from rdvla.robot.client import RemotePolicy

EXPERT = "expert"
Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is found and what it computes in; see `rdvla.policies.network.load_policy`.

    The sentences are those of the command line (`rdvla.cli.options`).
    """

    revision: Annotated[str | None, "Branch, tag or commit of a hub id."] = None
    base: Annotated[str | None, "Of an un-merged lora_adapter: the VLM it was trained on."] = None
    statistics: Annotated[str | None, "Which of the checkpoint's statistics, e.g. a suite."] = None
    gripper: Annotated[GripperConvention | None, "Of a released checkpoint that does not say: its gripper."] = None
    device: Annotated[str, "Where the checkpoint computes."] = "cpu"
    precision: Annotated[Precision | None, "What the checkpoint computes in [default: as stored]."] = None
    compile: Annotated[bool, "Record every shape at its first decision (torch.compile, CUDA graphs); for a GPU."] = (
        False
    )

    def label(self, source: str) -> str:
        """Return `source` with everything that is not left at its default, e.g. `runs/policy (precision=int8)`.

        `rdvla.eval.protocol.split_policy` takes it apart again.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        given = [f"{name}={value}" for name, value in options.items() if value != getattr(LoadOptions, name)]
        return f"{source} ({', '.join(given)})" if given else source


def load_checkpoint(source: str, options: LoadOptions, expected: str | None = None) -> Policy:
    """Return the policy of a checkpoint, whose fingerprint must be `expected` (None: any).

    Raises:
        CheckpointError: this machine has another one at `source` now, or none.
    """
    from rdvla.policies.network import load_policy

    if expected is not None:
        found = _fingerprint(source, options)
        if found != expected:
            raise CheckpointError(
                f"'{source}' on {platform.node()} is another checkpoint ({found}) than the one that the command began "
                f"with ({expected}); leave it unchanged while a command uses it, and the same on every machine."
            )
    return load_policy(source, **asdict(options))


def connect(url: str, served: str | None = None, *, steering: bool = False) -> "RemotePolicy":
    """Return the policy served at `url`, which must have the fingerprint `served` (None: any).

    Args:
        url: of the server.
        served: its fingerprint.
        steering: whether a person at its live page may change what is asked.

    Raises:
        ServeError: nobody answers there, or it has another.
    """
    from rdvla.robot.client import RemotePolicy

    remote = RemotePolicy(url, steering=steering)
    found = remote.metadata.fingerprint
    if served is not None and found != served:
        remote.close()
        raise ServeError(f"the server at {url} now serves another policy: it was '{served}', is '{found}'.")
    return remote


def choose_policy(
    checkpoint: str | Path | None, policy: str | None, options: LoadOptions | None = None, *, steering: bool = False
) -> tuple[str, str, Callable[[], Policy]]:
    """Return a policy's name, a fingerprint and a function that builds it.

    The fingerprint is that of the checkpoint's files or what a server says of itself, and empty for an expert. Whoever
    builds the policy, now or later, here or on another machine, must find the same.

    Args:
        checkpoint: a checkpoint folder or a hub id, which is downloaded here.
        policy: `expert` or `ws://host:port`; exactly one of both is given.
        options: of a checkpoint; what is not default becomes part of the name.
        steering: whether a person at a server's live page may change what is asked of it.

    Raises:
        ConfigError: both, neither, an unknown policy, or options for something that is no checkpoint.
        CheckpointError: no checkpoint at `checkpoint`, and the hub does not have it.
        ServeError: nobody answers at the address.
    """
    options = options or LoadOptions()
    if (checkpoint is None) == (policy is None):
        raise ConfigError("give either --checkpoint DIR_OR_HUB_ID or --policy (expert or ws://host:port).")
    if checkpoint is not None:
        digest = _fingerprint(checkpoint, options)
        factory = partial(load_checkpoint, str(checkpoint), options, digest)
        return options.label(str(Path(checkpoint))), digest, factory
    assert policy is not None
    if options != LoadOptions():
        raise ConfigError(f"'{policy}' is no checkpoint; drop {options.label('').strip(' ()')}.")
    if policy == EXPERT:
        return policy, "", ExpertPolicy
    if policy.startswith(("ws://", "wss://")):
        with connect(policy) as remote:
            served = remote.metadata.fingerprint
        return policy, served, partial(connect, policy, served, steering=steering)
    raise ConfigError(f"unknown policy '{policy}': it is 'expert' or an address such as ws://localhost:8000.")


def _fingerprint(source: str | Path, options: LoadOptions) -> str:
    """Return that of a checkpoint's files, those of its base included if it has one.

    Raises:
        CheckpointError: there is none.
    """
    from rdvla.checkpoints.load import find

    folders = [find(source, revision=options.revision)]
    if options.base is not None:
        folders.append(resolve(options.base, CHECKPOINT))
    return fingerprint(*folders)


def fingerprint(*folders: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a checkpoint's files, their names within its `folders` included.

    Cards, pictures and what tools leave beside them (`.cache`, `.git`) are no part of it.
    """
    digest = hashlib.sha256()
    kinds = tuple(pattern.removeprefix("*") for pattern in CHECKPOINT.patterns)
    for folder in folders:
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.name.endswith(kinds) and path.is_file()]
        for name in sorted(name for name in names if not any(part.startswith(".") for part in name.parts)):
            digest.update(name.as_posix().encode() + b"\0")
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]
