"""What training sees of a dataset: chunks of actions with the images and state they start from.

Shapes: B samples, T = chunk_size, A = action size, S = state size, H, W = image size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, suggest

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes) now and then, by what goes through a dataset."""

Timestamps = Literal["stored", "frame_index"]
"""Which video frame belongs to a row: `stored` goes by its timestamp, `frame_index` by its number."""

Sampling = Literal["padded", "lasting", "resting", "published"]
"""`padded`: every frame starts a chunk; past the episode's end the last action repeats, marked as padding.
`lasting`: likewise, but nothing is marked: past the end the last action goes on.
`resting`: likewise, but past the end every entry except the last, the gripper, is 0, and nothing is marked.
`published`: the last T - 1 frames of an episode start no chunk, so nothing is padded (as the OpenVLA line trains)."""


@dataclass(frozen=True)
class ChunkBatch:
    """Several samples as stacked arrays.

    Attributes:
        images: camera name -> uint8 `[B, H, W, 3]`, RGB, upright.
        state: float32 `[B, S]`, unnormalised.
        actions: float32 `[B, T, A]` in the environment's own convention, as stored.
        action_is_pad: bool `[B, T]`, true past the episode's end.
        instructions: B sentences, the tasks in words.
        episode_index: int64 `[B]`, the episode within the dataset.
        frame_index: int64 `[B]`, the frame within the episode.
        keyframe: where the robot will be at the samples' next keyframes; None unless the dataset was asked for it.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    action_is_pad: NDArray[np.bool_]
    instructions: tuple[str, ...]
    episode_index: NDArray[np.int64]
    frame_index: NDArray[np.int64]
    keyframe: "KeyframeBatch | None" = None


@dataclass(frozen=True)
class KeyframeBatch:
    """Samples' next keyframes (`next_keyframes`).

    Attributes:
        state: float32 `[B, S]`, unnormalised: the state there.
        is_far: bool `[B]`: whether the robot still has some way to go.
    """

    state: NDArray[np.float32]
    is_far: NDArray[np.bool_]


def next_keyframes(gripper_L: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the next keyframe of every frame of an episode: where the gripper opens or closes next, else the end.

    Keyframes at changes of the gripper are those of James and Davison (Q-attention, 2022), less the frames at which the
    arm rests.

    Args:
        gripper_L: the commands of an episode of L frames, open and closed of opposite sign; 0 changes nothing.

    Returns:
        int64 `[L]`: for every frame the first one after it whose command is another than the one before; L - 1 if
        there is none.
    """
    changes = gripper_changes(gripper_L)
    ends = np.append(changes, len(gripper_L) - 1)
    following: NDArray[np.int64] = ends[np.searchsorted(changes, np.arange(len(gripper_L)), side="right")]
    return following


def gripper_changes(gripper_L: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the frames of an episode at which the gripper is told to open or close, ascending.

    Args:
        gripper_L: the commands of an episode of L frames, open and closed of opposite sign; 0 changes nothing.
    """
    frames = np.arange(len(gripper_L))
    commanded = np.maximum.accumulate(np.where(gripper_L != 0, frames, 0))  # the frame of the last command so far
    signs = np.sign(gripper_L[commanded])
    changes: NDArray[np.int64] = np.flatnonzero(signs[1:] * signs[:-1] < 0) + 1
    return changes


def chunk_windows(
    frame_indices: NDArray[np.int64], episode_length: int | NDArray[np.int64], chunk_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return which frames the chunks starting at `frame_indices` `[B]` take their actions from.

    `episode_length` is one for all, or `[B, 1]`.

    Returns:
        frames int64 `[B, T]` within the episode, the last frame repeated past the end, and is_pad bool `[B, T]`.
    """
    wanted_BT = frame_indices[:, None] + np.arange(chunk_size)
    return np.minimum(wanted_BT, episode_length - 1), wanted_BT >= episode_length


def chunk_starts(episode_length: int, chunk_size: int, sampling: Sampling) -> NDArray[np.int64]:
    """Return the frames of an episode that start a chunk: int64, ascending, maybe none for `published`.

    Raises:
        ConfigError: chunk_size below 1 or an unknown sampling.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size must be at least 1, found {chunk_size}.")
    if sampling not in get_args(Sampling):
        raise ConfigError(f"unknown sampling '{sampling}'.{suggest(sampling, get_args(Sampling))}")
    last = episode_length - (chunk_size - 1) if sampling == "published" else episode_length
    return np.arange(max(last, 0))
