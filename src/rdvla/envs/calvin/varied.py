"""Tables that vary, for demonstrations only: three tables teach places and colours instead of what is to be moved.

Of the scenes A to C, everything that is used stays where it is but the button with its light, which stands anywhere
along the table, and the blocks with it. Wood and doors are painted with textures of the three scenes. A policy that saw
A, B and C alone took first the colours, then the button for the place of slider and switch. Scene D, in which the
benchmark evaluates, lends no texture, and its slider with its drawer are on none of these tables.
"""

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from rdvla.envs.calvin.assets import SceneConfig, load_scene
from rdvla.errors import ConfigError, suggest

SCENES = ("A", "B", "C")
"""The scenes that vary, and lend their textures."""

WOOD, DOORS = ("base_link", "plank_link"), ("slide_link", "drawer_link")
"""The links that have textures."""

_TINT = 0.5
"""The most that a channel is darkened by."""

_END = 0.28  # x in m, frame of the table, as far as buttons stand from the middle
_LIGHTS_APART = 0.1  # m between the centres of the two lights
_BESIDE_BUTTON = 0.12  # m from the button's middle to where blocks lie
_TABLE = (-0.35, 0.35)  # x in m, world frame, between which blocks lie in the scenes


@dataclass(frozen=True)
class Look:
    """How a link of the table is painted.

    Attributes:
        texture: picture file.
        colour: RGB in [0, 1] that the texture is multiplied with.
    """

    texture: Path
    colour: tuple[float, float, float]


def draw_looks(rng: np.random.Generator, data: Path) -> Mapping[str, Look]:
    """Draw looks for a table: link -> look. The wood takes one, slider and drawer another, often of another scene.

    Args:
        rng: is drawn from.
        data: folder with `data/` and `conf/`.

    Raises:
        ConfigError: files of the scenes A to C are missing or name no texture.
    """
    looks: dict[str, Look] = {}
    for links in (WOOD, DOORS):
        scene = SCENES[rng.integers(len(SCENES))]
        red, green, blue = 1 - rng.uniform(0, _TINT) * rng.random(3)
        looks |= {link: Look(texture(scene, data, link), (red, green, blue)) for link in links}
    return looks


@contextlib.contextmanager
def vary(scene: SceneConfig, rng: np.random.Generator) -> Iterator[SceneConfig]:
    """Draw where the button stands; the scene with it there can be loaded inside the block.

    Args:
        scene: A, B or C.
        rng: is drawn from.

    Raises:
        ConfigError: the table has no button.
    """
    lamp = places(scene)["base__light"]
    x = lamp
    while abs(x - lamp) < _LIGHTS_APART:
        x = float(rng.uniform(-_END, _END))
    with moved(scene, {"base__button": x, "base__led": x}) as varied:
        yield varied


def places(scene: SceneConfig) -> Mapping[str, float]:
    """Return where the table's parts are: joint -> x of its frame, m, in the frame of the table."""
    origins = _origins(ET.parse(scene.data / scene.table).getroot())
    return {joint: scene.scaling * float(origin.attrib["xyz"].split()[0]) for joint, origin in origins.items()}


@contextlib.contextmanager
def moved(scene: SceneConfig, joints: Mapping[str, float]) -> Iterator[SceneConfig]:
    """Yield the scene with parts of its table elsewhere; it can be loaded inside the block.

    Blocks that are drawn lie beside a moved button.

    Args:
        scene: where they are from.
        joints: joint -> x of its frame, m, in the frame of the table.

    Raises:
        ConfigError: the table has no such joint.
    """
    file = scene.data / scene.table
    table = ET.parse(file)
    origins = _origins(table.getroot())
    for joint, place in joints.items():
        if joint not in origins:
            raise ConfigError(f"the table of scene {scene.name} has no joint '{joint}'.{suggest(joint, origins)}")
        _, y, z = origins[joint].attrib["xyz"].split()
        origins[joint].set("xyz", f"{place / scene.scaling} {y} {z}")
    with tempfile.TemporaryDirectory(prefix="rdvla_table_") as folder:
        for name in ("meshes", "textures"):
            (Path(folder) / name).symlink_to((file.parent.parent / name).absolute())
        (Path(folder) / "urdf").mkdir()
        table.write(Path(folder) / "urdf" / file.name)
        doors = {
            name: replace(door, origin=(joints.get(name, door.origin[0]), *door.origin[1:]))
            for name, door in scene.doors.items()
        }
        surfaces = dict(scene.surfaces)
        if "base__button" in joints:
            x = joints["base__button"] + scene.table_position[0]
            left, right = (x + _BESIDE_BUTTON, _TABLE[1]) if x < 0 else (_TABLE[0], x - _BESIDE_BUTTON)
            (_, *low), (_, *high) = surfaces["table"]
            surfaces["table"] = (left, *low), (right, *high)
        yield replace(scene, table=str(Path(folder) / "urdf" / file.name), doors=doors, surfaces=surfaces)


def _origins(table: ET.Element) -> dict[str, ET.Element]:
    """Return joint -> where its frame is."""
    return {joint.attrib["name"]: next(joint.iter("origin")) for joint in table.iter("joint")}


@functools.cache
def texture(scene: str, data: Path, link: str) -> Path:
    """Return the picture that a link of a scene's table is painted with.

    Args:
        scene: A, B, C or D.
        data: folder with `data/` and `conf/`.
        link: `base_link`, `plank_link`, `slide_link` or `drawer_link`.

    Raises:
        ConfigError: files of the scene are missing, or the link has no texture.
    """
    config = load_scene(scene, data)
    material = (config.data / config.table).parent.parent / "meshes" / f"{link}.mtl"
    for line in material.read_text(encoding="utf-8").splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "map_Kd":
            return material.parent / value.strip()
    raise ConfigError(f"'{material}' names no texture (map_Kd), so the looks of scene {scene} cannot be drawn.")
