"""The play table's data files: where they are, and what the configuration among them says.

The files are those of a `calvin_env` checkout: `data/` (meshes, textures, URDF) and `conf/` (YAML). Lengths are in
metres, angles in radians, quaternions in the order x, y, z, w.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import yaml

from rdvla.errors import ConfigError
from rdvla.files import refuse_pointer, user_cache

logger = logging.getLogger(__name__)

VARIABLE = "RDVLA_CALVIN_DATA"
SCENES = ("A", "B", "C", "D")

_HOW = (
    f"Run `rdvla setup calvin`, or set {VARIABLE} to a checkout of calvin_env (a folder with conf/ and data/; without "
    "internet, copy these two from a machine that has them)."
)


@dataclass(frozen=True)
class RobotConfig:
    """The arm: `conf/robot/panda_longer_finger.yaml`, which builds on `panda.yaml`, and what the scene says of it.

    Attributes:
        urdf: file, relative to `data/`.
        base_position: of its base, world frame.
        base_orientation: of its base, Euler xyz.
        initial_joints: of the arm, also what the inverse kinematics prefers.
        arm_joints: indices of the seven joints of the arm.
        lower_limits: of the arm's joints.
        upper_limits: of the arm's joints.
        finger_joints: indices of the two finger joints.
        finger_limits: of either finger, closed and open.
        tcp_link: index of the link between the fingertips.
        max_force: of each motor of the arm, N m.
        gripper_force: of each finger while it closes, N; a hundredth of it while it opens.
        max_velocity: of each motor of the arm, rad/s.
    """

    urdf: str
    base_position: tuple[float, ...]
    base_orientation: tuple[float, ...]
    initial_joints: tuple[float, ...]
    arm_joints: tuple[int, ...]
    lower_limits: tuple[float, ...]
    upper_limits: tuple[float, ...]
    finger_joints: tuple[int, ...]
    finger_limits: tuple[float, ...]
    tcp_link: int
    max_force: float
    gripper_force: float
    max_velocity: float


@dataclass(frozen=True)
class CameraConfig:
    """A camera of `conf/cameras/cameras/`.

    Attributes:
        size: height and width in pixels.
        fov: vertical field of view in degrees.
        near: distance of the near plane.
        far: distance of the far plane.
        look_from: where it is; None for a camera on the robot's hand.
        look_at: where it looks; None for a camera on the hand.
        up: which way is up; None for a camera on the hand.
    """

    size: tuple[int, int]
    fov: float
    near: float
    far: float
    look_from: tuple[float, ...] | None = None
    look_at: tuple[float, ...] | None = None
    up: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DoorConfig:
    """A part of the table that moves freely: the slider or the drawer.

    Attributes:
        initial: its joint at first.
        end: its joint when it is open.
        origin: of its link when the joint is at 0, in the frame of the table.
    """

    initial: float
    end: float
    origin: tuple[float, ...]


@dataclass(frozen=True)
class TriggerConfig:
    """A button or a switch of the table.

    Attributes:
        initial: its joint at rest.
        light: name of the light it works.
    """

    initial: float
    light: str


@dataclass(frozen=True)
class LightConfig:
    """A light of the table.

    Attributes:
        link: the table's link that changes its colour.
        colour: RGBA in [0, 1] when lit.
    """

    link: str
    colour: tuple[float, ...]


@dataclass(frozen=True)
class SceneConfig:
    """One of the scenes A to D: `conf/scene/calvin_scene_X.yaml` with the robot and the cameras.

    Attributes:
        name: A, B, C or D.
        data: the folder `data/`.
        robot: the arm.
        cameras: `static` and `gripper`.
        scaling: of every model but the robot and the floor.
        surfaces: name of an area where blocks may be -> its two opposite corners (x, y, z).
        blocks: name -> file, relative to `data/`; their order is that of the scene's observation.
        table: file of the table, relative to `data/`.
        table_position: of the table, world frame.
        table_orientation: of the table, Euler xyz.
        doors: joint -> slider or drawer.
        buttons: joint -> button.
        switches: joint -> switch.
        lights: name -> light.
    """

    name: str
    data: Path
    robot: RobotConfig
    cameras: Mapping[str, CameraConfig]
    scaling: float
    surfaces: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    blocks: Mapping[str, str]
    table: str
    table_position: tuple[float, ...]
    table_orientation: tuple[float, ...]
    doors: Mapping[str, DoorConfig]
    buttons: Mapping[str, TriggerConfig]
    switches: Mapping[str, TriggerConfig]
    lights: Mapping[str, LightConfig]


@dataclass(frozen=True)
class Manifest:
    """The files that the four scenes need, `manifest.json`.

    Attributes:
        repository: on GitHub, `owner/name`.
        revision: its commit.
        files: path in the repository -> size in bytes and SHA-256 checksum.
    """

    repository: str
    revision: str
    files: Mapping[str, tuple[int, str]]


@functools.cache
def manifest() -> Manifest:
    """Return which files the published numbers come from."""
    text = resources.files("rdvla.envs.calvin").joinpath("manifest.json").read_text(encoding="utf-8")
    content = json.loads(text)
    files = {path: (size, digest) for path, (size, digest) in content["files"].items()}
    return Manifest(content["repository"], content["revision"], files)


def revision(folder: Path) -> str:
    """Return the revision of the data files in `folder`: the pinned one, or `changed: ` and the files that differ."""
    changed = _changed(folder)
    return f"changed: {', '.join(changed)}" if changed else manifest().revision


@functools.cache
def _changed(folder: Path) -> tuple[str, ...]:
    return tuple(path for path in _read_files() if not _is_genuine(folder, path))


def _read_files() -> list[str]:
    """Return the manifest's files but for licence texts, which change nothing that is simulated or drawn."""
    return [path for path in manifest().files if not Path(path).name.startswith("LICENSE")]


def missing_files(folder: Path) -> list[str]:
    """Return the files of the manifest that are not in `folder`, or not as published."""
    return [path for path in manifest().files if not _is_genuine(folder, path)]


def _is_genuine(folder: Path, path: str) -> bool:
    size, digest = manifest().files[path]
    file = folder / path
    if not file.is_file() or file.stat().st_size != size:
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() == digest


def default_folder() -> Path:
    """Return where `rdvla setup calvin` puts the data files."""
    return user_cache() / "calvin"


def find_data(folder: Path | None = None) -> Path:
    """Return the folder with `conf/` and `data/`.

    Args:
        folder: where to look; None takes `$RDVLA_CALVIN_DATA`, else `default_folder()`.

    Raises:
        ConfigError: they are not there; the message says what to do.
    """
    named = os.environ.get(VARIABLE, "").strip()
    chosen = folder or (Path(named) if named else default_folder())
    for candidate in (chosen.expanduser(), chosen.expanduser() / "calvin_env"):
        if (candidate / "data" / "plane").is_dir() and (candidate / "conf" / "scene").is_dir():
            return candidate.absolute()
    origin = f" ({VARIABLE})" if named and folder is None else ""
    raise ConfigError(f"CALVIN's data files are not at '{chosen}'{origin}: no conf/ and data/ in it. {_HOW}")


def load_scene(name: str, folder: Path | None = None) -> SceneConfig:
    """Read one scene.

    Args:
        name: A, B, C or D.
        folder: as for `find_data`.

    Raises:
        ConfigError: no such scene, or its files are missing, damaged or say something else than expected.
    """
    if name not in SCENES:
        raise ConfigError(f"scene = {name!r}: CALVIN has the scenes {', '.join(SCENES)}.")
    root = find_data(folder)
    for path in _needed(name):
        _require_file(root / path)
    scene = _read(root / "conf" / "scene" / f"calvin_scene_{name}.yaml")
    robot = _read(root / "conf" / "robot" / "panda.yaml") | _read(root / "conf" / "robot" / "panda_longer_finger.yaml")
    cameras = {name: _read(root / "conf" / "cameras" / "cameras" / f"{name}.yaml") for name in ("static", "gripper")}
    try:
        config = _scene(name, root / "data", scene, robot, cameras)
    except (KeyError, TypeError, ValueError, IndexError, ET.ParseError) as error:
        raise ConfigError(
            f"scene {name} in '{root / 'conf'}' is not as expected ({type(error).__name__}: {error}). {_HOW}"
        ) from error
    for file in (config.robot.urdf, config.table, *config.blocks.values()):
        _require_file(config.data / file)
    _tell_changes(name, root)
    return config


def _needed(scene: str) -> list[str]:
    """Return the manifest's files that a scene reads, also meshes and textures, whose lack pybullet does not tell."""
    rest = [other for other in SCENES if other != scene]
    others = [part for other in rest for part in (f"/calvin_table_{other}/", f"/calvin_scene_{other}.yaml")]
    return [path for path in _read_files() if not any(part in path for part in others)]


@functools.cache
def _tell_changes(scene: str, root: Path) -> None:
    changed = [path for path in _needed(scene) if path in _changed(root)]
    if changed:
        logger.warning(
            "CALVIN scene %s: %s in '%s' are not as published, so physics or pictures may differ. `rdvla setup calvin` "
            "fetches the published ones.",
            scene,
            ", ".join(changed),
            root,
        )


def _scene(
    name: str, data: Path, scene: dict[str, Any], robot: dict[str, Any], cameras: dict[str, dict[str, Any]]
) -> SceneConfig:
    table = scene["objects"]["fixed_objects"]["table"]
    return SceneConfig(
        name=name,
        data=data,
        robot=_robot(scene, robot),
        cameras={name: _camera(camera) for name, camera in cameras.items()},
        scaling=float(scene["global_scaling"]),
        surfaces={
            surface: (_numbers(corners[0], 3), _numbers(corners[1], 3))
            for surface, corners in scene["surfaces"].items()
        },
        blocks={block: str(entry["file"]) for block, entry in scene["objects"]["movable_objects"].items()},
        table=str(table["file"]),
        table_position=_numbers(table["initial_pos"], 3),
        table_orientation=_numbers(table["initial_orn"], 3),
        doors=_doors(table["joints"], data / table["file"], float(scene["global_scaling"])),
        buttons=_triggers(table["buttons"]),
        switches=_triggers(table["switches"]),
        lights={
            light: LightConfig(str(entry["link"]), _numbers(entry["color"], 4))
            for light, entry in table["lights"].items()
        },
    )


def _robot(scene: dict[str, Any], robot: dict[str, Any]) -> RobotConfig:
    return RobotConfig(
        urdf=str(robot["filename"]),
        base_position=_numbers(scene["robot_base_position"], 3),
        base_orientation=_numbers(scene["robot_base_orientation"], 3),
        initial_joints=_numbers(scene["robot_initial_joint_positions"], 7),
        arm_joints=tuple(map(int, robot["arm_joint_ids"])),
        lower_limits=_numbers(robot["lower_joint_limits"], 7),
        upper_limits=_numbers(robot["upper_joint_limits"], 7),
        finger_joints=tuple(map(int, robot["gripper_joint_ids"])),
        finger_limits=_numbers(robot["gripper_joint_limits"], 2),
        tcp_link=int(robot["tcp_link_id"]),
        max_force=float(robot["max_joint_force"]),
        gripper_force=float(robot["gripper_force"]),
        max_velocity=float(robot["max_velocity"]),
    )


def _camera(camera: dict[str, Any]) -> CameraConfig:
    pose = [_numbers(camera[key], 3) for key in ("look_from", "look_at", "up_vector") if key in camera]
    size = (int(camera["height"]), int(camera["width"]))
    return CameraConfig(size, float(camera["fov"]), float(camera["nearval"]), float(camera["farval"]), *pose)


def _doors(entries: dict[str, Any], urdf: Path, scaling: float) -> dict[str, DoorConfig]:
    _require_file(urdf)
    joints = {joint.attrib["name"]: joint for joint in ET.parse(urdf).iter("joint")}

    def scaled(joint: str, part: str, attribute: str, count: int) -> tuple[float, ...]:
        (element,) = joints[joint].iter(part)
        return tuple(scaling * number for number in _numbers(element.attrib[attribute].split(), count))

    return {
        joint: DoorConfig(
            initial=float(entry["initial_state"]),
            end=scaled(joint, "limit", "upper", 1)[0],
            origin=scaled(joint, "origin", "xyz", 3),
        )
        for joint, entry in entries.items()
    }


def _triggers(entries: dict[str, Any]) -> dict[str, TriggerConfig]:
    return {
        joint: TriggerConfig(float(entry["initial_state"]), str(entry["effect"])) for joint, entry in entries.items()
    }


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count:
        raise ValueError(f"{count} numbers expected, found {values}")
    return numbers


def _read(path: Path) -> dict[str, Any]:
    _require_file(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read ({error}). {_HOW}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' is not a mapping. {_HOW}")
    return content


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"CALVIN's data files are incomplete: no '{path}'. {_HOW}")
    refuse_pointer(path, ConfigError)
