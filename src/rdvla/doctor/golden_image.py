"""Recorded cases of the image path and of the data path."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdvla.checkpoints.tensors import read_json
from rdvla.data.augmentation import (
    Factors,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
)
from rdvla.data.episodes import chunk_starts, chunk_windows
from rdvla.data.images import (
    PUBLISHED,
    ImagePath,
    centre_crop,
    crop_box,
    decode_jpeg,
    jpeg_round_trip,
    resize_lanczos3,
    resize_lanczos3_float,
    to_float,
)
from rdvla.data.stats import NormStats, load_statistics
from rdvla.doctor.checks import Check, compare, unread, within
from rdvla.errors import CheckpointError
from rdvla.files import DAMAGED_ARRAYS, read_arrays
from rdvla.model.backbones.prismatic import DinoSiglipConfig, normalise_pixels
from rdvla.types import ActionConvention

Arrays = Mapping[str, NDArray[Any]]

FRACTION_LIMIT = 4e-4
"""Of the values may be one grey level off; none may be two."""
FLOAT_LIMIT = 1e-3
"""Grey levels before rounding."""
DATA_LIMIT = 1e-6

RELEASED_TOWERS = DinoSiglipConfig()


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an `.npz` file of plain arrays.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return read_arrays(path)
    except DAMAGED_ARRAYS as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); copy it again.") from error


def check_images(path: Path) -> list[Check]:
    """Run every picture of a `golden_image.npz`, stage by stage and as a whole."""
    arrays = load_arrays(path)
    checks: list[Check] = []
    used: set[str] = set()
    for name in sorted({key.rpartition(".")[0] for key in arrays}):
        stages = {key.rpartition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
        for stage, check in _stages(f"image/{name}", stages).items():
            checks.append(check)
            used.add(f"{name}.{stage}")
        used |= {f"{name}.input"}
    return checks + unread("image", set(arrays) - used)


def _stages(case: str, stages: Arrays) -> dict[str, Check]:
    image, side = stages["input"], stages["resized_u8"].shape[0]
    area = PUBLISHED.crop_area
    assert area is not None
    whole = ImagePath(size=side, resize=PUBLISHED.resize, jpeg=PUBLISHED.jpeg, crop_area=area)
    width = np.sqrt(np.float32(area))
    offset = float((1 - width) / 2)
    recipes: dict[str, Callable[[], Check]] = {
        "jpeg_bytes": lambda: _levels(
            case, "decoded from the bytes", decode_jpeg(stages["jpeg_bytes"].tobytes()), stages["jpeg_decoded"]
        ),
        "jpeg_decoded": lambda: _levels(case, "jpeg round trip", jpeg_round_trip(image), stages["jpeg_decoded"]),
        "resized_float": lambda: compare(
            case,
            "resized, before rounding",
            resize_lanczos3_float(stages["jpeg_decoded"], side),
            stages["resized_float"],
            FLOAT_LIMIT,
        ),
        "resized_u8": lambda: _levels(
            case, "resized", resize_lanczos3(stages["jpeg_decoded"], side), stages["resized_u8"]
        ),
        "crop_float": lambda: compare(
            case,
            "cropped, before rounding",
            crop_box(to_float(stages["resized_u8"]), offset, offset, float(width)),
            stages["crop_float"],
            DATA_LIMIT,
        ),
        "crop_u8": lambda: _levels(case, "whole path", whole.prepare(image), stages["crop_u8"]),
        "pixel_values": lambda: compare(
            case, "normalised", _tower_pixels(stages["crop_u8"]), stages["pixel_values"], DATA_LIMIT
        ),
    }
    checks = {stage: recipe() for stage, recipe in recipes.items() if stage in stages}
    if "crop_u8" in stages:
        checks["input"] = _levels(case, "cropped", centre_crop(stages["resized_u8"], area), stages["crop_u8"])
    return checks


def _tower_pixels(image_hwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what both released towers see of uint8 `[h, w, 3]`, float32 `[6, h, w]`."""
    image = torch.from_numpy(image_hwc).unsqueeze(0).float() / 255
    towers = (RELEASED_TOWERS.dino, RELEASED_TOWERS.siglip)
    return torch.cat([normalise_pixels(image, tower.mean, tower.std)[0] for tower in towers]).numpy()


def _levels(case: str, quantity: str, found: NDArray[Any], expected: NDArray[Any]) -> Check:
    """Compare uint8 images: the difference is the fraction of values that are off."""
    if found.shape != expected.shape:
        return Check(case, quantity, "fail", note=f"shape {list(found.shape)} instead of {list(expected.shape)}")
    distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    largest, fraction = int(distance.max()), float((distance > 0).mean())
    if largest > 1:
        return Check(case, quantity, "fail", fraction, FRACTION_LIMIT, f"up to {largest} grey levels off")
    return within(case, quantity, fraction, FRACTION_LIMIT, note="fraction of values one grey level off")


def check_data(directory: Path) -> list[Check]:
    """Run the trajectories and augmentations of a `data/` directory."""
    arrays = load_arrays(directory / "golden_data.npz")
    statistics = next(iter(load_statistics(directory / "dataset_statistics.json").values()))
    names = sorted({key.partition(".")[0] for key in arrays} - {"aug"})
    checks: list[Check] = []
    used: set[str] = set()
    for name in names:
        own = {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
        checks += _trajectory(f"data/{name}", own, statistics.action, statistics.state)
        used |= {f"{name}.{key}" for key in own if key.partition("_")[0] in ("raw", "std", "norm", "chunk")}
    checks += _statistics(names, arrays, statistics.action, statistics.state)
    if "aug.input" in arrays:
        checks += _augmentation(arrays, read_json(directory / "aug_params.json"))
        used |= {key for key in arrays if key.startswith("aug.")}
    return checks + unread("data", set(arrays) - used)


def _trajectory(case: str, own: Arrays, action: NormStats, state: NormStats) -> list[Check]:
    """Compare the gripper convention, normalisation and chunks of one trajectory."""
    trained = ActionConvention("open_is_negative").from_env(own["raw_action"])
    chunk_size = own["chunk_action"].shape[1]
    starts = chunk_starts(len(trained), chunk_size, "published")
    frames, _ = chunk_windows(starts, len(trained), chunk_size)
    normalised = action.normalise(trained)
    states = state.normalise(own["raw_state"])
    return [
        compare(case, "actions in training space", trained, own["std_action"], DATA_LIMIT),
        compare(case, "state", own["raw_state"], own["std_proprio"], DATA_LIMIT),
        compare(case, "normalised actions", normalised, own["norm_action"], DATA_LIMIT),
        compare(case, "normalised state", states, own["norm_proprio"], DATA_LIMIT),
        compare(case, "action chunks", normalised[frames], own["chunk_action"], DATA_LIMIT),
        compare(case, "state of each chunk", states[starts][:, None], own["chunk_proprio"], DATA_LIMIT),
    ]


def _statistics(names: list[str], arrays: Arrays, action: NormStats, state: NormStats) -> list[Check]:
    """Recompute the statistics from the trajectories."""
    checks = []
    for label, key, expected in (("actions", "std_action", action), ("state", "std_proprio", state)):
        rows = np.concatenate([arrays[f"{name}.{key}"] for name in names])
        computed = NormStats.compute(rows, expected.mask.tolist())
        for field in ("mean", "std", "min", "max", "q01", "q99"):
            found, recorded = getattr(computed, field), getattr(expected, field)
            checks.append(compare("data/statistics", f"{field} of the {label}", found, recorded, DATA_LIMIT))
    return checks


def _augmentation(arrays: Arrays, p: Mapping[str, float]) -> list[Check]:
    """Compare every operation alone and in the chain (every 5th pixel recorded), and the final image."""
    operations: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "crop": lambda image: crop_box(image, p["height_offset"], p["width_offset"], p["side"]),
        "brightness": lambda image: adjust_brightness(image, p["brightness_delta"]),
        "contrast": lambda image: adjust_contrast(image, p["contrast_factor"]),
        "saturation": lambda image: adjust_saturation(image, p["saturation_factor"]),
        "hue": lambda image: adjust_hue(image, p["hue_delta"]),
    }
    start = chain = to_float(arrays["aug.input"])
    checks = []
    for name, operation in operations.items():
        chain = operation(chain)
        for kind, image in (("solo", operation(start)), ("chain", chain)):
            expected = arrays[f"aug.{kind}_{name}[::5,::5]"]
            checks.append(compare("data/augmentation", f"{kind} {name}", image[::5, ::5], expected, DATA_LIMIT))
    factors = Factors(
        side=p["side"],
        top=p["height_offset"],
        left=p["width_offset"],
        brightness=p["brightness_delta"],
        contrast=p["contrast_factor"],
        saturation=p["saturation_factor"],
        hue=p["hue_delta"],
    )
    found = augment(arrays["aug.input"], factors)
    return [*checks, _levels("data/augmentation", "augmented image", found, arrays["aug.output_u8"])]
