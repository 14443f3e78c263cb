"""The benchmark's 1,000 chains of five tasks, generated as published; and random chains that it does not contain."""

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.assets import SceneConfig
from rdvla.envs.calvin.rules import BLOCKS, COMPARTMENTS, RULES, Situation, follow
from rdvla.errors import ConfigError

NUM_CHAINS = 1000
CHAIN_LENGTH = 5

ROBOT_OBS = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
"""Where the robot is when a chain begins; see `Simulation.robot_obs`."""

PLACES = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
    "table_0": (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    "table_1": (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
}
"""Where the published chains have blocks, in scene D; m."""

_SLIDER_LEFT, _DRAWER_OPEN, _SWITCH_ON = 0.28, 0.22, 0.088
_YAW = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
_SURFACES_D = {
    "slider_left": ((-0.32, 0.05), (-0.16, 0.12)),
    "slider_right": ((-0.05, 0.05), (0.13, 0.12)),
    "table": ((0.0, -0.15), (0.35, -0.03)),
}
_ANY_YAW = (np.pi / 4, np.pi * 3 / 4)
_CLEARANCE = 0.12
_DOOR_WIDTH = 0.28  # m, in every scene
_BEHIND_DOOR = 0.09  # y in m, from where the slider passes in front of any block
_BESIDE_DOOR = 0.07  # m that a hand needs beside an open slider
_END = 0.32  # x in m, from where a block that is pushed outwards falls off the table, in every scene
_TASKS = tuple(RULES)


@dataclass(frozen=True)
class Chain:
    """Five tasks, or one alone, and the situation in which the first begins.

    Attributes:
        initial: the situation, see `rdvla.envs.calvin.rules`.
        tasks: names, see `rdvla.envs.calvin.tasks.TASKS`.
    """

    initial: Situation
    tasks: tuple[str, ...]


def evaluation_chain(index: int) -> Chain:
    """Return one of the 1,000 evaluation chains.

    Raises:
        ConfigError: there is no such chain.
    """
    if isinstance(index, bool) or not 0 <= index < NUM_CHAINS:
        raise ConfigError(f"chain = {index!r}: CALVIN has the chains 0..{NUM_CHAINS - 1}.")
    return _evaluation_chains()[index]


def start_obs(chain: Chain, scene: SceneConfig) -> NDArray[np.float64]:
    """Return the scene's observation with which an evaluation chain begins, float64 `[24]`.

    In scene D it is the published one. The other scenes have their surfaces elsewhere; blocks lie on corresponding
    points of them. Which block lies where on the table, and how it is turned, follows from the situation alone.
    """
    rng = np.random.RandomState(_fnv(str(chain.initial.values())))
    on_table = ["table_0", "table_1"]
    rng.shuffle(on_table)
    poses = {}
    for block in BLOCKS:
        place = str(chain.initial[block])
        # Of two blocks on the table, the second takes the second place; pink always does.
        if place == "table":
            second = block == "pink_block" or (block == "blue_block" and chain.initial["red_block"] == "table")
            place = on_table[second]
        poses[block] = [*_point(place, scene), 0.0, 0.0, rng.uniform(*_YAW)]
    return _scene_obs(chain.initial, poses, scene)


def random_start(
    rng: np.random.Generator, scene: SceneConfig, task: str | None = None
) -> tuple[Chain, NDArray[np.float64]]:
    """Draw a chain, or `task` alone, and an observation of `scene` with which it begins (see `start_obs`).

    Blocks lie anywhere on the right surface, in any orientation up to a quarter turn; but none in the slider's way, and
    none so near the table's end that pushing throws it off. So no drawn start is that of an evaluation chain, although
    the tasks may be the same.

    Args:
        rng: is drawn from.
        scene: of `load_scene`.
        task: one of `first_tasks()`; None draws five.
    """
    situations = initial_situations()
    if task is not None:
        situations = tuple(situation for situation in situations if follow(situation, [task]) is not None)
    situation = situations[rng.integers(len(situations))]
    poses: dict[str, list[float]] = {}
    for block in BLOCKS:
        low, high = _area(str(situation[block]), scene)
        while True:
            position = rng.uniform(low, high)
            if all(np.hypot(*(position - other[:3])[:2]) > _CLEARANCE for other in poses.values()):
                break
        poses[block] = [*position, 0.0, 0.0, rng.uniform(*_ANY_YAW)]
    tasks = _random_tasks(rng, situation) if task is None else (task,)
    return Chain(situation, tasks), _scene_obs(situation, poses, scene)


@functools.cache
def initial_situations() -> tuple[Situation, ...]:
    """Return the situations in which chains begin: one or two blocks on the table, others in different compartments."""
    values: Mapping[str, tuple[str | int, ...]] = {
        "led": (0, 1),
        "lightbulb": (0, 1),
        "slider": ("right", "left"),
        "drawer": ("closed", "open"),
        **dict.fromkeys(BLOCKS, ("table", *COMPARTMENTS)),
        "grasped": (0,),
    }
    return tuple(
        dict(zip(values, chosen, strict=True))
        for chosen in itertools.product(*values.values())
        if chosen.count("table") in (1, 2) and all(chosen.count(place) < 2 for place in COMPARTMENTS)
    )


@functools.cache
def first_tasks() -> tuple[str, ...]:
    """Return the tasks that make sense in a situation in which chains begin, 27 of the 34."""
    return tuple(
        task for task in _TASKS if any(follow(situation, [task]) is not None for situation in initial_situations())
    )


def generate(situation: int) -> list[tuple[str, ...]]:
    """Generate the evaluation chains of one initial situation: of random tasks, the first that make a chain.

    That takes about 37,000 tries, which is why `chains.json` holds the result for all 192 situations.

    Args:
        situation: index in `initial_situations()`, also the seed.
    """
    rng = np.random.RandomState(situation)
    start, count = initial_situations()[situation], _chains_per_situation()[situation]
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        tasks = tuple(_TASKS[index] for index in rng.permutation(len(_TASKS))[:CHAIN_LENGTH])
        if follow(start, tasks) is not None:
            found.append(tasks)
    return found


def published_order() -> NDArray[np.int64]:
    """Return which situation each of the 1,000 chains begins in: int64 `[1000]`, indices in `initial_situations()`."""
    order = list(np.repeat(np.arange(len(initial_situations())), _chains_per_situation()))
    np.random.RandomState(0).shuffle(order)
    return np.array(order)


def _chains_per_situation() -> list[int]:
    return [len(part) for part in np.array_split(range(NUM_CHAINS), len(initial_situations()))]


@functools.cache
def _evaluation_chains() -> tuple[Chain, ...]:
    text = resources.files("rdvla.envs.calvin").joinpath("chains.json").read_text(encoding="utf-8")
    situations = initial_situations()
    return tuple(
        Chain(situations[situation], tuple(_TASKS[index] for index in tasks))
        for situation, tasks in zip(published_order(), json.loads(text), strict=True)
    )


def _random_tasks(rng: np.random.Generator, situation: Situation) -> tuple[str, ...]:
    """Draw every task uniformly from those that continue the chain; begin again where none does."""
    tasks: list[str] = []
    while len(tasks) < CHAIN_LENGTH:
        possible = [task for task in _TASKS if follow(situation, [*tasks, task]) is not None]
        tasks = [*tasks, possible[rng.integers(len(possible))]] if possible else []
    return tuple(tasks)


def _scene_obs(situation: Situation, poses: Mapping[str, list[float]], scene: SceneConfig) -> NDArray[np.float64]:
    lit = int(situation["lightbulb"])
    joints = [
        _slider_left(scene) if situation["slider"] == "left" else 0.0,
        _DRAWER_OPEN if situation["drawer"] == "open" else 0.0,
        0.0,
        _SWITCH_ON if lit else 0.0,
    ]
    blocks = [poses[f"{name.removeprefix('block_')}_block"] for name in scene.blocks]
    return np.concatenate([joints, [lit, situation["led"]], *blocks])


def _slider_left(scene: SceneConfig) -> float:
    """Return the slider's joint when it is left: as in D, or at its end where it does not go that far."""
    return min(_SLIDER_LEFT, round(scene.doors["base__slide"].end, 6))


def _area(surface: str, scene: SceneConfig) -> NDArray[np.float64]:
    """Return where blocks may be drawn, `[2, 3]`: the surface without its ends, or what the open slider leaves free."""
    area = np.array(scene.surfaces[surface])
    left = scene.table_position[0] + scene.doors["base__slide"].origin[0]
    right = left + _DOOR_WIDTH - _slider_left(scene)
    free = {"slider_left": (-np.inf, left - _BESIDE_DOOR), "slider_right": (right + _BESIDE_DOOR, np.inf)}
    area[:, 0] = area[:, 0].clip(*free.get(surface, (-_END, _END)))
    if surface in COMPARTMENTS:
        area[0, 1] = _BEHIND_DOOR
    return area


def _point(place: str, scene: SceneConfig) -> NDArray[np.float64]:
    """Return where a block lies; outside D, as far along the surface as in D."""
    point = np.array(PLACES[place])
    if scene.name == "D":
        return point
    surface = place.removesuffix("_0").removesuffix("_1")
    low, high = np.array(_SURFACES_D[surface])
    lower, upper = np.array(scene.surfaces[surface])[:, :2]
    point[:2] = lower + (point[:2] - low) / (high - low) * (upper - lower)
    return point


def _fnv(text: str) -> int:
    """Return the 32-bit FNV-0 hash of a text in UTF-16, little-endian."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = value * 0x01000193 % 2**32 ^ byte
    return value
