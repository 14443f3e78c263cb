"""The contract between observations and a network, in one object: cameras, images, words, states, actions.

Deciding, training, `rdvla doctor` and plugins all go through `PolicyIO`, so a policy sees what it was
trained on.

Shapes: B batch, H, W a camera's size, h = w = the network's image size, S state size, A action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.data.images import ImagePath, centre_crop
from rdvla.data.stats import DatasetStatistics, select_statistics
from rdvla.errors import ObservationError, suggest
from rdvla.model.prompt import Prompt
from rdvla.model.rdvla import Inputs
from rdvla.types import ActionConvention, Observation


@dataclass(frozen=True)
class PolicyIO:
    """What a checkpoint fixes about its inputs and outputs.

    Attributes:
        cameras: in the network's order.
        image_path: from a camera image to the network's pixels.
        prompt: from instructions to token ids.
        statistics: normalise states and actions.
        convention: from training space to the environment's actions.
    """

    cameras: tuple[str, ...]
    image_path: ImagePath
    prompt: Prompt
    statistics: DatasetStatistics
    convention: ActionConvention

    @classmethod
    def of(cls, checkpoint: Checkpoint, statistics: str | None = None) -> Self:
        """Return a checkpoint's.

        Args:
            checkpoint: a policy in memory.
            statistics: which of its statistics; None takes the only one.

        Raises:
            CheckpointError: no such statistics, or several and none named.
        """
        config = checkpoint.model.config
        return cls(
            cameras=config.cameras,
            image_path=checkpoint.image_path,
            prompt=Prompt(checkpoint.tokenizer, config.prompt),
            statistics=select_statistics(checkpoint.statistics, statistics),
            convention=checkpoint.actions,
        )

    def observed(self, observations: Sequence[Observation]) -> Inputs:
        """Return the network's inputs for observations, at least one, on the CPU.

        Raises:
            ObservationError: a camera is missing or a state has another size.
        """
        images = {name: np.stack([self._camera(each, name) for each in observations]) for name in self.cameras}
        for observation in observations:
            self._check_state(observation)
        states = np.stack([observation.state for observation in observations])
        return self.inputs(images, self.state(states), [observation.instruction for observation in observations])

    def inputs(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state_BS: NDArray[np.float32],
        instructions: Sequence[str],
    ) -> Inputs:
        """Put together a batch, on the CPU.

        Args:
            images: camera -> uint8 `[B, h, w, 3]`, the network's pixels.
            state_BS: float32 `[B, S]`, normalised.
            instructions: B sentences.
        """
        ids, lengths = self.prompt(instructions)
        return Inputs(
            images=torch.from_numpy(np.stack([images[name] for name in self.cameras], axis=1)),
            ids=ids,
            lengths=lengths,
            state=torch.from_numpy(state_BS),
        )

    def cropped(self, stored_Bhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what the policy sees of images that were shrunk before (`ImagePath.shrink`), uint8 `[B, h, w, 3]`."""
        area = self.image_path.crop_area
        return stored_Bhwc if area is None else np.stack([centre_crop(image, area) for image in stored_Bhwc])

    def state(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return states `[..., S]` normalised, float32."""
        return self.statistics.state.normalise(values)

    def targets(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return recorded environment actions `[..., A]` as the network is to predict them, float32."""
        return self.statistics.action.normalise(self.convention.from_env(actions))

    def actions(self, predicted: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return predictions `[..., A]` as actions in the environment's convention, float32."""
        return self.convention.to_env(self.statistics.action.unnormalise(predicted))

    def opening(self, predicted: NDArray[np.floating[Any]]) -> NDArray[np.float32] | None:
        """Return how far open the gripper is in predictions `[..., A]`, float32 `[...]`; None if none is converted."""
        if self.convention.gripper == "none":
            return None
        return self.statistics.action.unnormalise(predicted)[..., -1].astype(np.float32)

    def _camera(self, observation: Observation, name: str) -> NDArray[np.uint8]:
        if name not in observation.images:
            raise ObservationError(f"the observation has no camera '{name}'.{suggest(name, observation.images)}")
        return self.image_path.prepare(observation.images[name])

    def _check_state(self, observation: Observation) -> None:
        expected = self.statistics.state.size
        if observation.state.shape != (expected,):
            raise ObservationError(f"state must have {expected} values, found {len(observation.state)}.")
