"""`rdvla.json` beside the released files: what their layout has no place for, and what is assumed where it is silent.

    {"gripper": "none",
     "images": {"size": 128, "resize": "box", "jpeg": false, "crop_area": null},
     "vision": {"dino": {"depth": 4, "width": 32, "num_heads": 2}},
     "default_stop": {"name": "action_l2", "threshold": 0.001}}

Every field may be missing. `vision` is described in `official_config`. Images default to the published path. The
gripper follows from the statistics, where they say it (`derived_gripper`); otherwise it must be given.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.official_config import tower_overrides
from rdvla.checkpoints.tensors import read_json
from rdvla.config import Config
from rdvla.data.images import PUBLISHED, ImagePath
from rdvla.data.stats import DatasetStatistics
from rdvla.embodiment import CALVIN, LIBERO, Embodiment
from rdvla.errors import CheckpointError, ConfigError
from rdvla.model.backbones.prismatic import PrismaticConfig
from rdvla.policy import Alarm
from rdvla.stops import StopRule
from rdvla.types import ActionConvention, GripperConvention

BESIDE = "rdvla.json"

# How released statistics are called -> the robot they are of.
_ROBOTS: Mapping[str, Embodiment] = {"libero": LIBERO, "calvin": CALVIN}


class Beside(Config):
    """The content of `rdvla.json`.

    Attributes:
        vision: sizes of the vision towers.
        gripper: what the environment expects in the last entry of an action.
        images: from a camera image to the network's pixels.
        default_stop: when to stop iterating where nobody says.
        alarm: when an episode takes longer than successful ones do.
    """

    vision: dict[str, Any] = Field(default_factory=dict)
    gripper: GripperConvention | None = None
    images: ImagePath | None = None
    default_stop: StopRule | None = None
    alarm: Alarm | None = None


def read_beside(directory: Path) -> Beside:
    """Read `rdvla.json`; without one, everything is as released.

    Raises:
        CheckpointError: an unknown field or a wrong value.
    """
    path = directory / BESIDE
    if not path.is_file():
        return Beside()
    try:
        return Beside.build(read_json(path), source=f"'{path}'")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def beside(checkpoint: Checkpoint, backbone: PrismaticConfig) -> dict[str, Any]:
    """Return what `rdvla.json` must say, so that the checkpoint is loaded as it is; empty if nothing."""
    found = Beside(
        vision=tower_overrides(backbone.vision),
        gripper=None
        if derived_gripper(checkpoint.statistics) == checkpoint.actions.gripper
        else checkpoint.actions.gripper,
        images=None if checkpoint.image_path == published_images(backbone.image_size) else checkpoint.image_path,
        default_stop=checkpoint.default_stop,
        alarm=checkpoint.alarm,
    )
    return found.model_dump(mode="json", exclude_defaults=True)


def published_images(size: int) -> ImagePath:
    """Return the published image path to `size` pixels."""
    return replace(PUBLISHED, size=size)


def convention(
    said: GripperConvention | None,
    given: GripperConvention | None,
    statistics: Mapping[str, DatasetStatistics],
    *,
    source: str,
) -> ActionConvention:
    """Return the convention of a released checkpoint: what `rdvla.json` says, what is given, what follows.

    Raises:
        CheckpointError: none of them.
    """
    gripper = said or given or derived_gripper(statistics)
    if gripper is None:
        raise CheckpointError(
            f"'{source}' does not say what its last action is, and its statistics ({', '.join(statistics)}) do not "
            "tell. Give it (--gripper): open_is_negative (LIBERO: -1 opens, +1 closes), open_is_positive (CALVIN) "
            "or none (a number like the others)."
        )
    return ActionConvention(gripper)


def derived_gripper(statistics: Mapping[str, DatasetStatistics]) -> GripperConvention | None:
    """Return the convention that statistics imply; None if they imply none, or different ones.

    Those called `libero...` or `calvin...` are of LIBERO's or CALVIN's robot, if they have its sizes and a last action
    that is not normalised (as a gripper's is not). Under any other name, a last action that is normalised like the rest
    is a number like the rest: `none`.
    """
    implied = {_implied(name, entry) for name, entry in statistics.items()}
    return implied.pop() if len(implied) == 1 else None


def _implied(name: str, entry: DatasetStatistics) -> GripperConvention | None:
    normalised = bool(entry.action.mask[-1])
    robot = next((robot for prefix, robot in _ROBOTS.items() if name.lower().startswith(prefix)), None)
    if robot is None:
        return "none" if normalised else None
    fits = (entry.action.size, entry.state.size) == (robot.action_dim, robot.state_dim)
    return robot.gripper if fits and not normalised else None
