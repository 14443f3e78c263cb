"""Batches as a function of (seed, step): nothing to save, nothing to restore, the same after a restart."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rdvla.data.augmentation import Augmentation, augment
from rdvla.data.episodes import ChunkBatch, KeyframeBatch
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.model.rdvla import Inputs
from rdvla.policies.io import PolicyIO
from rdvla.train.augment import augment_tensors


@dataclass(frozen=True)
class Keyframe:
    """Where samples' robots will be at their next keyframe.

    Attributes:
        state: float32 `[B, S]`, normalised.
        is_far: bool `[B]`, whether they are far from there.
    """

    state: Tensor
    is_far: Tensor

    @classmethod
    def of(cls, stored: KeyframeBatch, io: PolicyIO) -> Self:
        """Normalise what a dataset brings."""
        return cls(torch.from_numpy(io.state(stored.state)), torch.from_numpy(stored.is_far))

    def to(self, device: torch.device) -> Self:
        """Return it on `device`."""
        return replace(self, state=self.state.to(device), is_far=self.is_far.to(device))


@dataclass(frozen=True)
class TrainBatch:
    """A batch ready for the loss.

    Attributes:
        inputs: the network's inputs.
        actions: float32 `[B, K, A]`, normalised.
        action_is_pad: bool `[B, K]`.
        episode_index: int64 `[B]`, to name an offending sample.
        frame_index: int64 `[B]`.
        factors: float32 `[B, M, 9]` on the CPU: the augmentation that each image still is to get (`augment_tensors`);
            None if it has it.
        keyframe: each sample's next keyframe; None if the dataset gives none.
    """

    inputs: Inputs
    actions: Tensor
    action_is_pad: Tensor
    episode_index: NDArray[np.int64]
    frame_index: NDArray[np.int64]
    factors: Tensor | None = None
    keyframe: Keyframe | None = None

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`, its images augmented."""
        tensors = {entry.name: getattr(self.inputs, entry.name) for entry in fields(self.inputs)}
        inputs = Inputs(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})
        if self.factors is not None:
            images = augment_tensors(inputs.images.flatten(0, 1), self.factors.flatten(0, 1))
            inputs = replace(inputs, images=images.view_as(inputs.images))
        actions, is_pad = self.actions.to(device), self.action_is_pad.to(device)
        keyframe = None if self.keyframe is None else self.keyframe.to(device)
        return replace(self, inputs=inputs, actions=actions, action_is_pad=is_pad, factors=None, keyframe=keyframe)

    def pin_memory(self) -> Self:
        """Return the batch with its images where a GPU fetches them without waiting (called by torch's loader)."""
        return replace(self, inputs=replace(self.inputs, images=self.inputs.images.pin_memory()))


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

    def factors(self) -> NDArray[np.float32]:
        """Draw what `images` would do to one camera's images, float32 `[B, 9]`."""
        return np.array([astuple(self.augmentation.sample(rng)) for rng in self.rngs], dtype=np.float32)

    def state(self, state_BS: NDArray[np.float32]) -> NDArray[np.float32]:
        """Disturb float32 `[B, S]`."""
        noise = np.stack([rng.normal(0.0, self.state_noise, state_BS.shape[1]) for rng in self.rngs])
        return (state_BS + noise).astype(np.float32)


def collate(
    io: PolicyIO, batch: ChunkBatch, *, disturbance: Disturbance | None = None, augment_later: bool = False
) -> TrainBatch:
    """Turn stored samples into network inputs and targets.

    Args:
        io: of the policy in training.
        batch: stored samples; their images are shrunk but not cropped.
        disturbance: augments images and state; unless it crops by itself, images are cut as the policy will see
            them.
        augment_later: leave the images' augmentation to `TrainBatch.to`.
    """
    state = io.state(batch.state)
    images = {camera: batch.images[camera] for camera in io.cameras}
    factors = None
    if disturbance is None or disturbance.augmentation.crop_area is None:
        images = {camera: io.cropped(stored) for camera, stored in images.items()}
    if disturbance is not None:
        state = disturbance.state(state)
        if augment_later:
            factors = torch.from_numpy(np.stack([disturbance.factors() for _ in images], axis=1))
        else:
            images = {camera: disturbance.images(stored) for camera, stored in images.items()}
    return TrainBatch(
        inputs=io.inputs(images, state, batch.instructions),
        actions=torch.from_numpy(io.targets(batch.actions)),
        action_is_pad=torch.from_numpy(batch.action_is_pad),
        episode_index=batch.episode_index,
        frame_index=batch.frame_index,
        factors=factors,
        keyframe=None if batch.keyframe is None else Keyframe.of(batch.keyframe, io),
    )


def sample_indices(num_samples: int, batch_size: int, seed: int, position: int) -> NDArray[np.int64]:
    """Return the samples of the `position`-th batch: consecutive slices of one permutation per epoch.

    Epochs are drawn from (`seed`, epoch); a batch may span two of them.
    """
    wanted = np.arange(position * batch_size, (position + 1) * batch_size)
    epochs, offsets = wanted // num_samples, wanted % num_samples
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_samples) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)], dtype=np.int64)


@dataclass(frozen=True)
class Preparation:
    """Prepares the training batch of any position; what it holds depends on the position alone.

    Attributes:
        dataset: samples to take from.
        io: of the policy in training.
        batch_size: samples per batch.
        augmentation: of the images.
        state_noise: deviation of the noise on the normalised state.
        seed: decides order and augmentation.
        augment_later: leave the images' augmentation to `TrainBatch.to`, for a device that does it faster.
    """

    dataset: LeRobotDataset
    io: PolicyIO
    batch_size: int
    augmentation: Augmentation
    state_noise: float
    seed: int
    augment_later: bool = False

    def __call__(self, position: int) -> TrainBatch:
        """Return the batch at `position`."""
        indices = sample_indices(len(self.dataset), self.batch_size, self.seed, position)
        numbers = range(position * self.batch_size, (position + 1) * self.batch_size)
        rngs = [np.random.default_rng([self.seed, 1, number]) for number in numbers]
        disturbance = Disturbance(self.augmentation, self.state_noise, rngs)
        batch = self.dataset.batch(indices)
        return collate(self.io, batch, disturbance=disturbance, augment_later=self.augment_later)


def training_batches(prepare: Preparation, positions: range, *, num_workers: int = 1) -> Iterator[TrainBatch]:
    """Yield the batches at `positions`; one thread prepares the next one meanwhile, or several processes the next ones.

    With batches that are augmented later, on a GPU, their images are in pinned memory.
    """
    if num_workers > 1:
        yield from DataLoader(
            _Batches(prepare, positions),
            batch_size=None,
            collate_fn=_unchanged,  # type: ignore[arg-type]  # without a batch size it gets one item
            num_workers=min(num_workers, len(positions)),
            multiprocessing_context="spawn",  # a process with threads and a GPU cannot be forked
            pin_memory=prepare.augment_later,
        )
        return
    with ThreadPoolExecutor(1) as executor:
        upcoming: Future[TrainBatch] | None = None
        for position in positions:
            ready, upcoming = upcoming, executor.submit(prepare, position)
            if ready is not None:
                yield ready.result()
        if upcoming is not None:
            yield upcoming.result()


@dataclass(frozen=True)
class _Batches(Dataset[TrainBatch]):
    prepare: Preparation
    positions: range

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> TrainBatch:
        return self.prepare(self.positions[index])


def _unchanged(batch: TrainBatch) -> TrainBatch:
    return batch
