"""One way in for every kind of checkpoint."""

from pathlib import Path

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.hub import resolve
from rdvla.checkpoints.lerobot import is_lerobot, load_lerobot
from rdvla.checkpoints.lora import is_adapter, merge_adapter
from rdvla.checkpoints.native import is_native, load_native
from rdvla.checkpoints.official import is_official, load_official
from rdvla.checkpoints.tensors import read_sharded
from rdvla.errors import CheckpointError

ADAPTER = "lora_adapter"


def load(path_or_hub_id: str | Path, *, revision: str | None = None, base: str | Path | None = None) -> Checkpoint:
    """Load our own format, a released directory or a LeRobot policy of type rdvla, whichever it is.

    Args:
        path_or_hub_id: a directory, or `owner/name` on the Hugging Face hub.
        revision: branch, tag or commit of a hub id.
        base: for a released directory with an un-merged `lora_adapter/`: the VLM that the adapter was trained on,
            latent tokens included (a released directory or a hub id).

    Returns:
        The checkpoint; its network is on the CPU, in the stored dtype, in evaluation mode.

    Raises:
        CheckpointError: not a checkpoint, incomplete, damaged, ambiguous, or it does not fit itself.
    """
    directory = resolve(path_or_hub_id, revision=revision)
    if is_native(directory):
        if base is not None:
            raise CheckpointError(f"'{directory}' is complete; it takes no base.")
        return load_native(directory)
    if is_lerobot(directory):
        return load_lerobot(directory)
    if not is_official(directory):
        raise CheckpointError(
            f"'{directory}' is not a checkpoint: neither a config.json of rdvla (or of LeRobot with type rdvla) nor an "
            "action_head_config--*.json."
        )
    merged = any(directory.glob("model*.safetensors*"))
    if base is None:
        if not merged and is_adapter(directory / ADAPTER):
            raise CheckpointError(f"'{directory}' has an un-merged {ADAPTER}; name the base VLM that it belongs to.")
        return load_official(directory)
    if merged or not is_adapter(directory / ADAPTER):
        raise CheckpointError(f"a base needs an un-merged {ADAPTER}/ and no model.safetensors in '{directory}'.")
    return load_official(directory, vlm=merge_adapter(read_sharded(resolve(base)), directory / ADAPTER))


def is_checkpoint(path: str | Path) -> bool:
    """Say whether `path` is a directory that `load` reads, or may be a hub id."""
    directory = Path(path)
    return not directory.exists() or any(kind(directory) for kind in (is_native, is_lerobot, is_official))
