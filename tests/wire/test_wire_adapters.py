"""Observation layouts, literal arrays in and out."""

from typing import Any

import numpy as np
import pytest

from rdvla.errors import ObservationError
from rdvla.wire.adapters import adapt, to_message
from serve_fakes import metadata, observation

HWC = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
STATE = np.arange(8, dtype=np.float64)


def libero(**changes: Any) -> dict[str, Any]:
    message = {
        "observation/image": HWC,
        "observation/wrist_image": HWC + 100,
        "observation/state": STATE,
        "prompt": "pick up the bowl",
    }
    return {key: value for key, value in (message | changes).items() if value is not None}


def test_libero_keys() -> None:
    adapted = adapt(libero(), metadata())
    assert adapted.layout == "libero"
    np.testing.assert_array_equal(adapted.observation.images["primary"], HWC)
    np.testing.assert_array_equal(adapted.observation.images["wrist"], HWC + 100)
    np.testing.assert_array_equal(adapted.observation.state, STATE)
    assert adapted.observation.state.dtype == np.float32
    assert adapted.observation.instruction == "pick up the bowl"


def test_libero_without_the_wrist_for_a_policy_without_it() -> None:
    adapted = adapt(libero(**{"observation/wrist_image": None}), metadata(["primary"]))
    assert list(adapted.observation.images) == ["primary"]


def test_openpi_layouts_take_channels_first_and_floats() -> None:
    floats = HWC.transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_array_equal(
        adapt(libero(**{"observation/image": floats}), metadata()).observation.images["primary"], HWC
    )


def test_aloha_keys_channels_first_with_missing_cameras_black() -> None:
    cameras = ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    message = {"state": STATE, "images": {"cam_high": HWC.transpose(2, 0, 1)}, "prompt": "fold"}
    adapted = adapt(message, metadata(cameras))
    assert adapted.layout == "aloha"
    assert adapted.missing_cameras == ("cam_left_wrist", "cam_right_wrist")
    np.testing.assert_array_equal(adapted.observation.images["cam_high"], HWC)
    np.testing.assert_array_equal(adapted.observation.images["cam_right_wrist"], np.zeros_like(HWC))


def test_aloha_without_a_prompt_takes_the_servers() -> None:
    message = {"state": STATE, "images": {"cam_high": HWC.transpose(2, 0, 1)}}
    adapted = adapt(message, metadata(["primary"]), default_instruction="insert the peg")
    assert adapted.observation.instruction == "insert the peg"
    with pytest.raises(ObservationError, match="'prompt' must be a sentence"):
        adapt(message, metadata(["primary"]))


def test_native_keys_without_an_instruction_take_the_servers() -> None:
    message = to_message(observation(3, side=17))
    del message["instruction"]
    adapted = adapt(message, metadata(), default_instruction="insert the peg")
    assert (adapted.layout, adapted.observation.instruction) == ("native", "insert the peg")
    with pytest.raises(ObservationError, match="'instruction' must be a sentence"):
        adapt(message, metadata())


def test_native_keys_are_exact() -> None:
    seen = observation(3, side=17)
    adapted = adapt(to_message(seen), metadata())
    assert adapted.layout == "native"
    for camera, image in seen.images.items():
        np.testing.assert_array_equal(adapted.observation.images[camera], image)
    np.testing.assert_array_equal(adapted.observation.state, seen.state)
    with pytest.raises(ObservationError, match="uint8"):
        adapt(to_message(seen) | {"images": {camera: image / 255 for camera, image in seen.images.items()}}, metadata())


def test_the_policy_may_write_into_what_it_gets() -> None:
    frozen = HWC.copy()
    frozen.flags.writeable = False
    adapted = adapt(libero(**{"observation/image": frozen}), metadata())
    adapted.observation.images["primary"][0, 0, 0] = 99
    assert frozen[0, 0, 0] == 0


def test_any_image_size() -> None:
    for side in (1, 30, 224, 513):
        image = np.zeros((side, side + 1, 3), np.uint8)
        assert (
            adapt(libero(**{"observation/image": image}), metadata()).observation.images["primary"].shape == image.shape
        )


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({}, "no layout"),
        ({"foo": 1}, "no layout"),
        (libero(**{"observation/wrist_image": None}), "'observation/wrist_image' is missing"),
        (libero(**{"observation/depth": HWC}), "unknown keys"),
        (libero(dept=3), "unknown keys"),
        (libero(**{"observation/state": STATE[:7]}), r"shape \[8\]"),
        (libero(**{"observation/state": [0.0] * 8}), "array of numbers"),
        (libero(**{"observation/state": np.full(8, np.nan)}), "non-finite"),
        (libero(**{"observation/state": np.full(8, 1e300)}), "non-finite"),
        (libero(**{"observation/state": np.ones(8, bool)}), "array of numbers"),
        (libero(**{"observation/image": "x"}), "must be an array"),
        (libero(**{"observation/image": HWC[0]}), "three dimensions"),
        (libero(**{"observation/image": HWC[:, :, :2]}), r"\[H, W, 3\]"),
        (libero(**{"observation/image": np.zeros((0, 4, 3), np.uint8)}), "sides of"),
        (libero(**{"observation/image": np.zeros((5000, 1, 3), np.uint8)}), "sides of"),
        (libero(**{"observation/image": HWC.astype(np.float32)}), "outside 0..1"),
        (libero(**{"observation/image": np.full((4, 4, 3), np.nan)}), "outside 0..1"),
        (libero(**{"observation/image": HWC.astype(np.int32)}), "uint8"),
        (libero(prompt="  "), "non-empty"),
        (libero(prompt=5), "sentence"),
        (libero(prompt="x" * 1001), "sentence"),
        ({"state": STATE, "images": {"cam_front": HWC}, "prompt": "x"}, "unknown cameras"),
        ({"state": STATE, "images": HWC, "prompt": "x"}, "must be a map"),
        ({"state": STATE, "images": {}, "instruction": "x"}, "'primary' is missing"),
        ({"state": STATE, "images": {"primary": HWC, 3: HWC}, "instruction": "x"}, "unknown cameras"),
    ],
)
def test_wrong_observations_are_named(message: dict[str, Any], match: str) -> None:
    with pytest.raises(ObservationError, match=match):
        adapt(message, metadata())


def test_a_camera_that_a_layout_does_not_have() -> None:
    with pytest.raises(ObservationError, match="needs the camera 'overhead'"):
        adapt(libero(), metadata(["primary", "overhead"]))
