"""A policy with random weights for a LeRobot dataset: its cameras, sizes, sentences and exact statistics."""

from pathlib import Path
from typing import Any, cast

from lerobot_policy_rdvla.configuration_rdvla import RDVLAConfig
from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.data.conventions import contradiction, robots_contradiction
from rdvla.data.images import TINY
from rdvla.data.lerobot_meta import STANDARD_CAMERAS
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.stats import DatasetStatistics
from rdvla.errors import ConfigError
from rdvla.model.config import rdvla_tiny
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.types import ActionConvention, GripperConvention

STATE, ACTION = "observation.state", "action"


def new_checkpoint(config: RDVLAConfig, dataset_meta: Any) -> Checkpoint:
    """Return a small policy with random weights from torch's global generator.

    Args:
        config: cameras, convention and sizes.
        dataset_meta: LeRobot's `LeRobotDatasetMetadata`, whose folder is read for the statistics.

    Raises:
        ConfigError: no dataset, its actions or its robot have another gripper, or two cameras would have one name.
        DatasetError: the dataset cannot be read.
    """
    if dataset_meta is None:
        raise ConfigError(
            "nothing to start from: give --policy.path, --policy.checkpoint with a checkpoint of rdvla, or a dataset."
        )
    cameras = config.cameras or {_camera_of(key): key for key in config.image_features}
    if not config.cameras and len(cameras) < len(config.image_features):
        raise ConfigError(
            f"several of {', '.join(config.image_features)} would have the same name; name them, or those to see, with "
            """--policy.cameras='{"primary": "KEY", ...}'."""
        )
    config.cameras = dict(cameras)
    source = LeRobotSource.load(Path(dataset_meta.root), [STATE, ACTION])
    gripper = cast("GripperConvention", config.gripper)  # checked by the configuration
    _check_gripper(source, gripper)
    convention = ActionConvention(gripper)
    statistics = DatasetStatistics.compute(
        source.columns[ACTION], source.columns[STATE], convention, num_trajectories=len(source.episodes)
    )
    tokenizer = train_tokenizer(source.tasks.values(), vocab_size=config.vocab_size)
    tiny = rdvla_tiny(tokenizer.get_vocab_size())
    head = tiny.head.model_copy(
        update={
            "state_dim": statistics.state.size,
            "action_dim": statistics.action.size,
            "chunk_size": config.chunk_size,
            "coda_cross_attention": False,
        }
    )
    model = RDVLA(tiny.model_copy(update={"cameras": tuple(cameras), "head": head}))
    return Checkpoint(model, {"dataset": statistics}, tokenizer, image_path=TINY, actions=convention)


def _check_gripper(source: LeRobotSource, gripper: GripperConvention) -> None:
    values, names = source.columns[ACTION][:, -1], source.info.features[STATE].names
    setting = "policy.gripper"
    reason = contradiction(values, gripper, setting) or robots_contradiction(names, gripper, setting)
    if reason is not None:
        raise ConfigError(f"'{source.root}': {reason}")


def _camera_of(key: str) -> str:
    known = {there: ours for ours, there in STANDARD_CAMERAS.items()}
    return known.get(key) or key.rpartition(".")[2]
