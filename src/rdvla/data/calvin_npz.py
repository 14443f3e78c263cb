"""Reads CALVIN's original data: one `episode_*.npz` per step, sentences in `lang_annotations/auto_lang_ann.npy`.

An episode is what one annotation covers, first and last step included; play without a sentence is left out. Actions are
the relative ones (gripper +1 open), of the state the eight entries that the published policies see.
"""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import ACTION_KEY, STANDARD_CAMERAS, STATE_KEY, Feature, demonstration_features
from rdvla.data.lerobot_writer import RecordedEpisode
from rdvla.embodiment import CALVIN
from rdvla.errors import DatasetError
from rdvla.files import DAMAGED_ARRAYS, read_arrays, refuse_pointer

SENTENCES = "lang_annotations/auto_lang_ann.npy"
_FOLDERS = {"train": "training", "validation": "validation"}
_CAMERAS = {STANDARD_CAMERAS["primary"]: "rgb_static", STANDARD_CAMERAS["wrist"]: "rgb_gripper"}
_STATE = [*range(7), 14]
_SIZES = {"robot_obs": (15,), "rel_actions": (7,)}
_HARMLESS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and arrays; a file that names anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def sentence_file(root: Path, split: str) -> Path | None:
    """Return the file with the sentences of `root` (a split, or the folder around them); None if there is none."""
    candidates = (root / SENTENCES, root / _FOLDERS.get(split, split) / SENTENCES)
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class CalvinRecordings:
    """The annotated part of one split, an `EpisodeSource`. Make one with `open`.

    Attributes:
        name: the folder's name.
        folder: holds the `episode_*.npz` files.
        spans: first and last step of each episode, and its sentence.
        features: key -> feature of the LeRobotDataset that it becomes.
    """

    name: str
    folder: Path
    spans: tuple[tuple[int, int, str], ...]
    features: Mapping[str, Feature]
    fps: float = CALVIN.control_hz
    robot_type: str | None = CALVIN.robot_type

    @classmethod
    def open(cls, sentences: Path) -> Self:
        """Open the split that the file `sentences` (see `sentence_file`) belongs to.

        Raises:
            DatasetError: a file is missing or damaged, or holds something else.
        """
        folder = sentences.parent.parent
        spans = _spans(sentences)
        images = _step(folder, spans[0][0])
        sizes = {key: images[name].shape for key, name in _CAMERAS.items()}
        features = demonstration_features(sizes, CALVIN.state_names, CALVIN.action_names)
        return cls(folder.resolve().parent.name, folder, spans, features)

    def __len__(self) -> int:
        """Number of annotations."""
        return len(self.spans)

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the annotated episodes.

        Raises:
            DatasetError: a step is missing, damaged or holds something else.
        """
        for first, last, sentence in self.spans:
            steps = [_step(self.folder, number) for number in range(first, last + 1)]
            columns = {
                STATE_KEY: np.stack([step["robot_obs"] for step in steps])[:, _STATE].astype(np.float32),
                ACTION_KEY: np.stack([step["rel_actions"] for step in steps]).astype(np.float32),
            }
            images = {key: [step[name] for step in steps] for key, name in _CAMERAS.items()}
            yield RecordedEpisode(sentence, columns, images)


def _step(folder: Path, number: int) -> dict[str, NDArray[Any]]:
    path = folder / f"episode_{number:07d}.npz"
    try:
        refuse_pointer(path, DatasetError)
        step = read_arrays(path, (*_CAMERAS.values(), *_SIZES))
    except FileNotFoundError:
        raise DatasetError(f"'{path}' is missing; copy the dataset again, all of its files.") from None
    except DAMAGED_ARRAYS as error:
        raise DatasetError(f"'{path}' is damaged or no step of CALVIN ({error}); copy the dataset again.") from None
    for name, shape in _SIZES.items():
        if step[name].shape != shape:
            raise DatasetError(f"'{path}': {name} should be {list(shape)}, found {list(step[name].shape)}.")
    for name in _CAMERAS.values():
        if step[name].dtype != np.uint8 or step[name].shape[2:] != (3,):
            raise DatasetError(f"'{path}': {name} is no 8-bit RGB picture ({step[name].dtype}, {step[name].shape}).")
    return step


def _spans(path: Path) -> tuple[tuple[int, int, str], ...]:
    try:
        refuse_pointer(path, DatasetError)
        with path.open("rb") as stream:
            document = _plain(stream)
        sentences, spans = document["language"]["ann"], document["info"]["indx"]
        found = tuple((int(a), int(b), str(text)) for (a, b), text in zip(spans, sentences, strict=True))
    except (OSError, EOFError, KeyError, TypeError, ValueError, IndexError, pickle.UnpicklingError) as error:
        raise DatasetError(f"'{path}' holds no annotations of CALVIN ({error}); copy it again.") from None
    if not found or any(last < first for first, last, _ in found):
        raise DatasetError(f"'{path}' has no annotation, or one that ends before it begins; copy it again.")
    return found


def _plain(stream: BinaryIO) -> Any:
    """Read an object array of one entry without running what it names."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, kind = read(stream)
    if kind != np.dtype(object):
        raise ValueError(f"an array of {kind}")
    return _PlainUnpickler(stream).load().item()
