"""LeRobot's `pretrained_model` folder, as the plugin `lerobot_policy_rdvla` reads and writes it; LeRobot is not needed.

config.json                    LeRobot's own: `"type": "rdvla"`, features, the plugin's options
model.safetensors              the network's tensors, each name after `model.`
policy_preprocessor.json, policy_postprocessor.json
rdvla/config.json, norm_stats.json, tokenizer.json    ours: network, image path, convention, statistics, words
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.native import CONFIG, WEIGHTS, read_description, stored_tensors, write_description
from rdvla.checkpoints.tensors import read_json, read_safetensors, write_safetensors
from rdvla.data.lerobot_meta import camera_key
from rdvla.errors import CheckpointError
from rdvla.files import replacing_folder, write_json
from rdvla.horizons import DEFAULT_HORIZON

TYPE = "rdvla"
DESCRIPTION = "rdvla"
PREFIX = "model."

_IDENTITY = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
_IMAGE_SIDE = 256  # what LIBERO's environment and datasets deliver; the policy takes any size


def is_lerobot(directory: Path) -> bool:
    """Say whether `directory` is a `pretrained_model` folder of the plugin."""
    path = directory / CONFIG
    return path.is_file() and read_json(path).get("type") == TYPE


def load_lerobot(directory: Path) -> Checkpoint:
    """Read a `pretrained_model` folder, strictly; the network is on the CPU, in the stored dtype, in evaluation mode.

    Raises:
        CheckpointError: anything is missing, damaged, unknown or of another shape or dtype than it should be.
    """
    description = directory / DESCRIPTION
    if not (description / CONFIG).is_file():
        raise CheckpointError(
            f"'{directory}' has no folder {DESCRIPTION}/ with the network's description; copy it too."
        )
    weights = directory / WEIGHTS
    return read_description(description, partial(_read_own, weights), source=str(weights))


def _read_own(weights: Path) -> dict[str, Tensor]:
    tensors = read_safetensors(weights)
    if foreign := [name for name in tensors if not name.startswith(PREFIX)]:
        raise CheckpointError(f"'{weights}' holds tensors of something else: {', '.join(sorted(foreign)[:5])}.")
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def save_lerobot(directory: Path, checkpoint: Checkpoint, *, replace: bool = False) -> None:
    """Write a `pretrained_model` folder that LeRobot loads with the plugin installed.

    Raises:
        StorageError: the directory exists and may not be replaced, or the disk refuses.
        CheckpointError: the tensors have different dtypes.
    """
    features = features_of(checkpoint)
    with replacing_folder(directory, replace=replace) as draft:
        write_json(draft / CONFIG, _config(checkpoint, features), indent=4)
        write_parts(draft, checkpoint)
        write_json(draft / "policy_preprocessor.json", _preprocessor(features), indent=2)
        write_json(draft / "policy_postprocessor.json", _postprocessor(features), indent=2)


def write_parts(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the weights and our description into a folder that has LeRobot's own files, or will have them."""
    (directory / DESCRIPTION).mkdir(exist_ok=True)
    write_description(directory / DESCRIPTION, checkpoint)
    tensors: dict[str, Tensor] = {f"{PREFIX}{name}": tensor for name, tensor in stored_tensors(checkpoint).items()}
    write_safetensors(directory / WEIGHTS, tensors)


def features_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return LeRobot's features of a policy: key -> `{"type", "shape"}`, inputs first, `action` last."""
    config = checkpoint.model.config
    images = {
        camera_key(camera): {"type": "VISUAL", "shape": [3, _IMAGE_SIDE, _IMAGE_SIDE]} for camera in config.cameras
    }
    return {
        **images,
        "observation.state": {"type": "STATE", "shape": [config.head.state_dim]},
        "action": {"type": "ACTION", "shape": [config.head.action_dim]},
    }


def _config(checkpoint: Checkpoint, features: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {key: feature for key, feature in features.items() if key != "action"}
    chunk_size = checkpoint.model.config.head.chunk_size
    return {
        "type": TYPE,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {"action": features["action"]},
        "chunk_size": chunk_size,
        "n_action_steps": min(int(DEFAULT_HORIZON), chunk_size),  # as the plugin executes unless told otherwise
        "push_to_hub": False,
    }


def _preprocessor(features: Mapping[str, Any]) -> dict[str, Any]:
    normalizer = {"eps": 1e-8, "features": features, "norm_map": _IDENTITY}
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        {"registry_name": "normalizer_processor", "config": normalizer},
    ]
    return {"name": "policy_preprocessor", "steps": steps}


def _postprocessor(features: Mapping[str, Any]) -> dict[str, Any]:
    unnormalizer = {"eps": 1e-8, "features": {"action": features["action"]}, "norm_map": _IDENTITY}
    steps = [
        {"registry_name": "unnormalizer_processor", "config": unnormalizer},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    return {"name": "policy_postprocessor", "steps": steps}
