"""Everything that makes a policy, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from rdvla.data.images import PUBLISHED, ImagePath
from rdvla.data.stats import DatasetStatistics
from rdvla.errors import CheckpointError, ConfigError
from rdvla.model.rdvla import RDVLA
from rdvla.policy import Alarm
from rdvla.stops import StopRule
from rdvla.types import ActionConvention, GripperConvention


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is needed to use it.

    Attributes:
        model: the network; `model.config` describes it completely.
        statistics: dataset name -> statistics of its actions and states.
        tokenizer: turns the formatted prompt into ids.
        actions: from training space to the environment's convention.
        image_path: from a camera image to the network's pixels.
        step: optimiser step at which the checkpoint was saved, if known.
        default_stop: when to stop iterating where nobody says; None leaves it to `rdvla.policies`.
        alarm: when an episode takes longer than successful ones do; None if that was not calibrated.
        notes: anything else worth keeping (recipe, data, commit); JSON values only.

    Raises:
        CheckpointError: the parts do not fit each other.
    """

    model: RDVLA
    statistics: Mapping[str, DatasetStatistics]
    tokenizer: Tokenizer
    actions: ActionConvention
    image_path: ImagePath = PUBLISHED
    step: int | None = None
    default_stop: StopRule | None = None
    alarm: Alarm | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.model.config
        check_statistics(self.statistics, action_dim=config.head.action_dim, state_dim=config.head.state_dim)
        backbone = config.backbone
        if self.image_path.size != backbone.image_size:
            raise CheckpointError(
                f"the image path makes {self.image_path.size} pixels but the tower takes {backbone.image_size}."
            )
        vocabulary = self.tokenizer.get_vocab_size(with_added_tokens=True)
        if vocabulary > backbone.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {vocabulary} tokens but the language model {backbone.vocab_size}; "
                "they belong to different checkpoints."
            )


def require_gripper(checkpoint: Checkpoint, gripper: GripperConvention | None) -> None:
    """Make sure that a checkpoint has the gripper convention that somebody asked for (None: nobody did).

    Raises:
        ConfigError: it says another one itself.
    """
    if gripper not in (None, checkpoint.actions.gripper):
        raise ConfigError(f"the checkpoint says that its gripper is '{checkpoint.actions.gripper}'; drop '{gripper}'.")


def check_statistics(statistics: Mapping[str, DatasetStatistics], *, action_dim: int, state_dim: int) -> None:
    """Check that statistics fit a head.

    Raises:
        CheckpointError: there are none, or an entry has another action or state size.
    """
    if not statistics:
        raise CheckpointError("the checkpoint has no statistics; without them actions cannot be unnormalised.")
    for name, entry in statistics.items():
        for what, found, expected in (("action", entry.action, action_dim), ("state", entry.state, state_dim)):
            if found.size != expected:
                raise CheckpointError(
                    f"the statistics '{name}' have {what} size {found.size} but the network has {expected}; "
                    "they belong to another robot."
                )
