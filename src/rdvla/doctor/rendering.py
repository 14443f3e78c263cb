"""Does this machine draw LIBERO as the reference does?

One frame per camera of fixed scenes, reduced to 8x8 blocks, is compared with stored blocks of MuJoCo 3.3.2. Success
rates move with the pixels: MuJoCo 3.3.3 and later darken LIBERO-Object.
"""

import json
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.doctor.checks import Check, within
from rdvla.envs import InitState
from rdvla.envs.libero.env import CAMERAS, LiberoEnv
from rdvla.errors import ConfigError, MissingExtraError, SimulatorError

REFERENCE_MUJOCO = "3.3.2"
SCENES = (("libero_object", 0), ("libero_spatial", 0), ("libero_goal", 0))
"""Suite and task; always the bundled initial state 0 after settling."""
BLOCKS = 8
LIMIT = 1.5
"""Mean difference of the blocks in grey levels."""

_ADVICE = (
    f"policies see other pixels than those they were trained on. Install the reference: pip install "
    f"mujoco=={REFERENCE_MUJOCO} robosuite==1.4.0"
)


def check_rendering() -> list[Check]:
    """Render every scene of `SCENES` and compare it with the stored reference."""
    checks = []
    for suite, task_id in SCENES:
        case = f"rendering/{suite}"
        try:
            with LiberoEnv(suite, task_id) as env:
                env.reset(InitState(0))
                versions = env.versions()
                checks += [_camera(case, suite, name, env.frame(name), versions) for name in CAMERAS]
        except MissingExtraError as error:
            return [*checks, Check(case, "LIBERO", "skip", note=str(error))]
        except (SimulatorError, ConfigError) as error:
            checks.append(Check(case, "LIBERO", "fail", note=str(error)))
    return checks


def blocks(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean colour of each of 8x8 blocks of an image `[H, W, 3]`, H and W multiples of 8: `[8, 8, 3]`."""
    height, width = image.shape[0] // BLOCKS, image.shape[1] // BLOCKS
    means: NDArray[np.float64] = image.reshape(BLOCKS, height, BLOCKS, width, 3).mean(axis=(1, 3))
    return means


@cache
def reference() -> dict[str, dict[str, Any]]:
    """Return suite -> camera -> blocks of the reference rendering."""
    text = resources.files("rdvla.doctor").joinpath("rendering_reference.json").read_text(encoding="utf-8")
    scenes: dict[str, dict[str, Any]] = json.loads(text)
    return scenes


def _camera(case: str, suite: str, camera: str, image: NDArray[np.uint8], versions: dict[str, str]) -> Check:
    difference = blocks(image) - np.asarray(reference()[suite][camera])
    brightness = float(difference.mean())
    check = within(case, f"camera {camera}", float(np.abs(difference).mean()), LIMIT)
    drawn_by = f"MuJoCo {versions['mujoco']}, {versions.get('gl_renderer', versions['gl_backend'])}"
    if check.status == "pass":
        return replace(check, note=drawn_by)
    tone = f"{abs(brightness):.0f} grey levels {'darker' if brightness < 0 else 'brighter'} than the reference"
    return replace(check, note=f"{drawn_by}: {tone}; {_ADVICE}")
