"""Three declared layouts of an observation on the wire, and how each becomes an `Observation`.

| layout | images | state | instruction |
|---|---|---|---|
| `libero` (openpi) | `observation/image`, `observation/wrist_image` | `observation/state` | `prompt` |
| `aloha` (openpi) | `images/{cam_high, cam_low, cam_left_wrist, cam_right_wrist}`, CHW | `state` | `prompt` |
| `native` | `images/{camera}` under the policy's own names | `state` | `instruction` |

Images may have any size. The openpi layouts also take what openpi's server takes: channels first or last, and
floats in 0..1. The native layout is exact: uint8, channels last, nothing guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ObservationError
from rdvla.policy import Ask, PolicyMetadata
from rdvla.types import Observation

MAX_INSTRUCTION = 1000  # characters
MAX_SIDE = 4096  # pixels
OPTION_KEYS = frozenset({"depth", "deadline_ms", *Ask.__dataclass_fields__})


@dataclass(frozen=True)
class Layout:
    """One declared layout.

    Attributes:
        name: for error messages and metrics.
        images: wire name -> the policy cameras it may stand for, in order of preference.
        nested: whether the images are in a map under `images` instead of being keys of the message.
        state: key of the state vector.
        instruction: key of the sentence.
        optional: wire names that may be missing; the policy then sees a black image.
        lenient: whether channels-first images and floats in 0..1 are converted.
    """

    name: str
    images: Mapping[str, Sequence[str]]
    nested: bool
    state: str
    instruction: str
    optional: frozenset[str] = frozenset()
    lenient: bool = True


LIBERO = Layout(
    name="libero",
    images={
        "observation/image": ("primary", "image", "agentview"),
        "observation/wrist_image": ("wrist", "wrist_image", "image2"),
    },
    nested=False,
    state="observation/state",
    instruction="prompt",
)
ALOHA = Layout(
    name="aloha",
    images={
        "cam_high": ("cam_high", "primary"),
        "cam_low": ("cam_low", "low"),
        "cam_left_wrist": ("cam_left_wrist", "left_wrist", "wrist"),
        "cam_right_wrist": ("cam_right_wrist", "right_wrist"),
    },
    nested=True,
    state="state",
    instruction="prompt",
    optional=frozenset({"cam_low", "cam_left_wrist", "cam_right_wrist"}),
)


def native(cameras: Sequence[str]) -> Layout:
    """Return the native layout of a policy with these `cameras`."""
    return Layout(
        name="native",
        images={camera: (camera,) for camera in cameras},
        nested=True,
        state="state",
        instruction="instruction",
        lenient=False,
    )


@dataclass(frozen=True)
class Adapted:
    """An observation and what was done to get it.

    Attributes:
        observation: what the policy sees.
        layout: name of the layout the message was in.
        missing_cameras: optional cameras that were absent and are black in the observation.
    """

    observation: Observation
    layout: str
    missing_cameras: tuple[str, ...] = ()


def adapt(message: Mapping[str, Any], metadata: PolicyMetadata, *, default_instruction: str | None = None) -> Adapted:
    """Turn a decoded message into the observation that the policy described by `metadata` needs.

    Args:
        message: as decoded; its arrays are copied.
        metadata: the cameras and the state size to expect.
        default_instruction: for requests without a sentence (openpi's ALOHA simulator client sends none).

    Raises:
        ObservationError: no layout matches, a key is missing or unknown, an image, the state or the sentence is
            wrong; the message says which and what was expected.
    """
    layout = _recognise(message, metadata)
    known = {layout.state, layout.instruction, *OPTION_KEYS, *(["images"] if layout.nested else layout.images)}
    _refuse_unknown(set(message) - known, layout, known)
    sources = _image_sources(message, layout)
    images, missing = _images(sources, layout, metadata)
    state = _state(message.get(layout.state), layout, metadata)
    instruction = message.get(layout.instruction, default_instruction)
    if not isinstance(instruction, str) or len(instruction) > MAX_INSTRUCTION:
        raise ObservationError(
            f"'{layout.instruction}' must be a sentence of at most {MAX_INSTRUCTION} characters, "
            f"found {_describe(instruction)}."
        )
    return Adapted(Observation(images=images, state=state, instruction=instruction), layout.name, missing)


def to_message(observation: Observation) -> dict[str, Any]:
    """Return `observation` in the native layout, ready to be encoded."""
    return {
        "images": {camera: np.ascontiguousarray(image) for camera, image in observation.images.items()},
        "state": observation.state,
        "instruction": observation.instruction,
    }


def _recognise(message: Mapping[str, Any], metadata: PolicyMetadata) -> Layout:
    if any(key.startswith("observation/") for key in message):
        return LIBERO
    own = native(metadata.cameras)
    images = message.get("images")
    cameras = set(images) if isinstance(images, Mapping) and "prompt" not in message else set()
    its_own = bool(cameras) and cameras <= set(own.images) and not cameras <= set(ALOHA.images)
    if "instruction" in message or its_own:
        return own
    if images is not None:
        return ALOHA
    raise ObservationError(
        f"no layout has the keys {sorted(message)[:12]}. Send openpi's LIBERO keys (observation/image, "
        "observation/wrist_image, observation/state, prompt), its ALOHA keys (state, images, prompt), or the native "
        "ones (images, state, instruction)."
    )


def _refuse_unknown(unknown: set[str], layout: Layout, known: set[str]) -> None:
    if unknown:
        raise ObservationError(
            f"unknown keys {sorted(unknown)[:8]} in the {layout.name} layout; known: {', '.join(sorted(known))}."
        )


def _image_sources(message: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    if not layout.nested:
        return {name: message[name] for name in layout.images if name in message}
    sources = message.get("images")
    if not isinstance(sources, dict):
        raise ObservationError(f"'images' must be a map of camera to image, found {_describe(sources)}.")
    unknown = [name for name in sources if name not in layout.images]
    if unknown:
        raise ObservationError(
            f"unknown cameras {[str(name)[:40] for name in unknown[:8]]} in the {layout.name} layout; "
            f"known: {', '.join(layout.images)}."
        )
    return sources


def _images(
    sources: Mapping[str, Any], layout: Layout, metadata: PolicyMetadata
) -> tuple[dict[str, NDArray[np.uint8]], tuple[str, ...]]:
    images: dict[str, NDArray[np.uint8]] = {}
    missing: list[str] = []
    for camera in metadata.cameras:
        wire = next((name for name, cameras in layout.images.items() if camera in cameras), None)
        if wire is None:
            raise ObservationError(
                f"this policy needs the camera '{camera}', which the {layout.name} layout does not have; "
                "use the native layout."
            )
        if wire in sources:
            images[camera] = _image(sources[wire], wire, lenient=layout.lenient)
        elif wire in layout.optional:
            missing.append(camera)
        else:
            raise ObservationError(f"image '{wire}' is missing; this policy needs {', '.join(metadata.cameras)}.")
    if missing and not images:
        raise ObservationError(f"no image at all; this policy needs {', '.join(metadata.cameras)}.")
    for camera in missing:
        images[camera] = np.zeros_like(next(iter(images.values())))
    return images, tuple(missing)


def _image(value: Any, name: str, *, lenient: bool) -> NDArray[np.uint8]:
    """Return a writable uint8 `[H, W, 3]` copy of `value`."""
    if not isinstance(value, np.ndarray):
        raise ObservationError(f"image '{name}' must be an array, found {_describe(value)}.")
    if value.ndim != 3:
        raise ObservationError(f"image '{name}' must have three dimensions, found shape {list(value.shape)}.")
    if lenient and value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.shape[2] != 3 or not all(1 <= side <= MAX_SIDE for side in value.shape[:2]):
        raise ObservationError(
            f"image '{name}' must be [H, W, 3] with sides of 1..{MAX_SIDE} pixels, found {list(value.shape)}."
        )
    if lenient and value.dtype.kind == "f":
        if not np.isfinite(value).all() or value.min() < 0 or value.max() > 1:
            raise ObservationError(f"image '{name}' has floats outside 0..1; send uint8 values 0..255.")
        value = np.round(value * 255.0).astype(np.uint8)
    if value.dtype != np.uint8:
        raise ObservationError(f"image '{name}' must be uint8, found {value.dtype}.")
    return np.array(value, order="C")


def _state(value: Any, layout: Layout, metadata: PolicyMetadata) -> NDArray[np.float32]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ObservationError(f"'{layout.state}' must be an array of numbers, found {_describe(value)}.")
    if value.shape != (metadata.state_dim,):
        raise ObservationError(
            f"'{layout.state}' must have shape [{metadata.state_dim}] for this policy, found {list(value.shape)}."
        )
    with np.errstate(over="ignore"):
        return np.array(value, dtype=np.float32)


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    return type(value).__name__
