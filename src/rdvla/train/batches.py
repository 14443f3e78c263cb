"""Batches as a function of (seed, step): nothing to save, nothing to restore, the same after a restart."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdvla.data.augmentation import Augmentation, augment_batch
from rdvla.data.episodes import ChunkBatch, EpisodeDataset
from rdvla.data.stats import DatasetStatistics
from rdvla.model.prompt import Prompt
from rdvla.model.rdvla import Inputs
from rdvla.types import ActionConvention


@dataclass(frozen=True)
class TrainBatch:
    """A batch ready for the loss.

    Attributes:
        inputs: the network's inputs.
        actions: float32 `[B, K, A]`, normalised.
        action_is_pad: bool `[B, K]`.
        episode_index: int64 `[B]`, to name an offending sample.
        frame_index: int64 `[B]`.
    """

    inputs: Inputs
    actions: Tensor
    action_is_pad: Tensor
    episode_index: NDArray[np.int64]
    frame_index: NDArray[np.int64]


@dataclass(frozen=True)
class Collator:
    """Turns stored samples into network inputs: convention, normalisation, prompt, augmentation."""

    cameras: Sequence[str]
    statistics: DatasetStatistics
    convention: ActionConvention
    prompt: Prompt

    def __call__(
        self,
        batch: ChunkBatch,
        *,
        augmentation: Augmentation | None = None,
        state_noise: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> TrainBatch:
        """Collate; with `augmentation` and `state_noise`, randomness comes from `rng`."""
        images = [batch.images[camera] for camera in self.cameras]
        state = self.statistics.state.normalise(batch.state)
        if rng is not None:
            if augmentation is not None:
                images = [augment_batch(image, augmentation, rng) for image in images]
            state = state + rng.normal(0.0, state_noise, state.shape).astype(np.float32)
        ids, lengths = self.prompt(batch.instructions)
        actions = self.statistics.action.normalise(self.convention.from_env(batch.actions))
        return TrainBatch(
            inputs=Inputs(
                images=torch.from_numpy(np.stack(images, axis=1)),
                ids=ids,
                lengths=lengths,
                state=torch.from_numpy(state),
            ),
            actions=torch.from_numpy(actions),
            action_is_pad=torch.from_numpy(batch.action_is_pad),
            episode_index=batch.episode_index,
            frame_index=batch.frame_index,
        )


def sample_indices(num_samples: int, batch_size: int, seed: int, position: int) -> NDArray[np.int64]:
    """Return the samples of the `position`-th batch: consecutive slices of one permutation per epoch.

    Epochs are drawn from (`seed`, epoch); a batch may span two of them.
    """
    wanted = np.arange(position * batch_size, (position + 1) * batch_size)
    epochs, offsets = wanted // num_samples, wanted % num_samples
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_samples) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)], dtype=np.int64)


def training_batches(
    dataset: EpisodeDataset,
    collator: Collator,
    *,
    batch_size: int,
    augmentation: Augmentation,
    state_noise: float,
    seed: int,
    start: int,
    stop: int,
) -> Iterator[TrainBatch]:
    """Yield the batches of positions `start..stop - 1`, the next one prepared in the background."""

    def prepare(position: int) -> TrainBatch:
        indices = sample_indices(len(dataset), batch_size, seed, position)
        rng = np.random.default_rng([seed, 1, position])
        return collator(dataset.batch(indices), augmentation=augmentation, state_noise=state_noise, rng=rng)

    with ThreadPoolExecutor(max_workers=1) as executor:
        upcoming = executor.submit(prepare, start) if start < stop else None
        for position in range(start, stop):
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = executor.submit(prepare, position + 1) if position + 1 < stop else None
            yield batch
