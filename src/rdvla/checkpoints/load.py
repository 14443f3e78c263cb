"""One way in for every kind of checkpoint."""

from pathlib import Path

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.lerobot import is_lerobot, load_lerobot
from rdvla.checkpoints.lora import is_adapter, merge_adapter
from rdvla.checkpoints.native import is_native, load_native
from rdvla.checkpoints.official import is_official, load_official
from rdvla.checkpoints.tensors import read_sharded
from rdvla.errors import CheckpointError
from rdvla.hub import CHECKPOINT, resolve
from rdvla.types import GripperConvention

ADAPTER = "lora_adapter"


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    gripper: GripperConvention | None = None,
) -> Checkpoint:
    """Load our own format, a released directory or a LeRobot policy of type rdvla, whichever it is.

    Args:
        source: a directory, or `owner/name` on the Hugging Face hub.
        revision: branch, tag or commit of a hub id.
        base: for a released directory with an un-merged `lora_adapter/`: the VLM that the adapter was trained on,
            latent tokens included (a released directory or a hub id).
        gripper: for a released directory that does not say it: what the environment expects in the last entry of an
            action. What a checkpoint says itself stays (`checkpoint.require_gripper` refuses another).

    Returns:
        The checkpoint; its network is on the CPU, in the stored dtype, in evaluation mode.

    Raises:
        CheckpointError: not a checkpoint, incomplete, damaged, ambiguous, or it does not fit itself.
    """
    directory = find(source, revision=revision)
    if not is_official(directory):
        if base is not None:
            raise CheckpointError(f"'{directory}' is complete; it takes no base.")
        return load_native(directory) if is_native(directory) else load_lerobot(directory)
    merged = any(directory.glob("model*.safetensors*"))
    if base is None:
        if not merged and is_adapter(directory / ADAPTER):
            raise CheckpointError(f"'{directory}' has an un-merged {ADAPTER}; name the base VLM that it belongs to.")
        return load_official(directory, gripper=gripper)
    if merged or not is_adapter(directory / ADAPTER):
        raise CheckpointError(f"a base needs an un-merged {ADAPTER}/ and no model.safetensors in '{directory}'.")
    vlm = merge_adapter(read_sharded(resolve(base, CHECKPOINT)), directory / ADAPTER)
    return load_official(directory, vlm=vlm, gripper=gripper)


def find(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint that `load` reads, without looking at its weights.

    Args:
        source: see `load`.
        revision: see `load`.

    Raises:
        CheckpointError: there is no such directory, or it holds something else.
    """
    directory = resolve(source, CHECKPOINT, revision=revision)
    if not _is_known(directory):
        raise CheckpointError(
            f"'{directory}' is not a checkpoint: neither a config.json of rdvla (or of LeRobot with type rdvla) nor an "
            f"action_head_config--*.json.{_hint(directory)}"
        )
    return directory


def is_checkpoint(path: str | Path) -> bool:
    """Say whether `path` is a directory that `load` reads, or may be a hub id."""
    directory = Path(path).expanduser()
    return not directory.exists() or _is_known(directory)


def _is_known(directory: Path) -> bool:
    return any(kind(directory) for kind in (is_native, is_lerobot, is_official))


def _hint(directory: Path) -> str:
    """Say where the checkpoint is, if `directory` is what is around one: a training run, ours or LeRobot's."""
    saved = sorted(directory.glob("checkpoints/*/p*"), reverse=True)  # policy/, pretrained_model/: newest first
    for inside in (directory / "policy", *saved, *sorted(directory.iterdir())):
        if inside.is_dir() and _is_known(inside):
            return f" Did you mean '{inside}'?"
    return ""
