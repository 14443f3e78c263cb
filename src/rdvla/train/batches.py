"""Batches as a function of (seed, step): nothing to save, nothing to restore, the same after a restart."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdvla.data.augmentation import Augmentation, augment
from rdvla.data.episodes import ChunkBatch, EpisodeDataset
from rdvla.model.rdvla import Inputs
from rdvla.policies.io import PolicyIO


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

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`."""
        tensors = {entry.name: getattr(self.inputs, entry.name) for entry in fields(self.inputs)}
        inputs = Inputs(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})
        actions, is_pad = self.actions.to(device), self.action_is_pad.to(device)
        return replace(self, inputs=inputs, actions=actions, action_is_pad=is_pad)


@dataclass(frozen=True)
class Disturbance:
    """Augmentation of one batch, each sample with its own generator, so that how samples are batched is irrelevant.

    Attributes:
        augmentation: what happens to images.
        state_noise: deviation of the Gaussian noise on the normalised state.
        rngs: one generator per sample.
    """

    augmentation: Augmentation
    state_noise: float
    rngs: Sequence[np.random.Generator]

    def images(self, images_Bhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Augment uint8 `[B, h, w, 3]`."""
        pairs = zip(images_Bhwc, self.rngs, strict=True)
        return np.stack([augment(image, self.augmentation.sample(rng)) for image, rng in pairs])

    def state(self, state_BS: NDArray[np.float32]) -> NDArray[np.float32]:
        """Disturb float32 `[B, S]`."""
        noise = np.stack([rng.normal(0.0, self.state_noise, state_BS.shape[1]) for rng in self.rngs])
        return (state_BS + noise).astype(np.float32)


def collate(io: PolicyIO, batch: ChunkBatch, *, disturbance: Disturbance | None = None) -> TrainBatch:
    """Turn stored samples into network inputs and targets.

    Args:
        io: of the policy in training.
        batch: stored samples; their images are shrunk but not cropped.
        disturbance: augments images and state; without it images are cut as the policy will see them.
    """
    state = io.state(batch.state)
    images = {camera: batch.images[camera] for camera in io.cameras}
    if disturbance is None:
        images = {camera: io.cropped(stored) for camera, stored in images.items()}
    else:
        images = {camera: disturbance.images(stored) for camera, stored in images.items()}
        state = disturbance.state(state)
    return TrainBatch(
        inputs=io.inputs(images, state, batch.instructions),
        actions=torch.from_numpy(io.targets(batch.actions)),
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
    io: PolicyIO,
    *,
    batch_size: int,
    augmentation: Augmentation,
    state_noise: float,
    seed: int,
    positions: range,
    num_workers: int = 1,
) -> Iterator[TrainBatch]:
    """Yield the batches at `positions`; `num_workers` threads prepare as many of the next ones meanwhile.

    What a batch holds depends on its position alone.
    """

    def prepare(position: int) -> TrainBatch:
        indices = sample_indices(len(dataset), batch_size, seed, position)
        numbers = range(position * batch_size, (position + 1) * batch_size)
        rngs = [np.random.default_rng([seed, 1, number]) for number in numbers]
        return collate(io, dataset.batch(indices), disturbance=Disturbance(augmentation, state_noise, rngs))

    with ThreadPoolExecutor(num_workers) as executor:
        upcoming: deque[Future[TrainBatch]] = deque()
        for position in positions:
            upcoming.append(executor.submit(prepare, position))
            if len(upcoming) > num_workers:
                yield upcoming.popleft().result()
        while upcoming:
            yield upcoming.popleft().result()
