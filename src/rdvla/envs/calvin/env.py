"""CALVIN as an `Env`: a chain of five tasks is an episode of five stages, a task alone an episode of one."""

from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.embodiment import CALVIN, Embodiment
from rdvla.envs.base import InitState, Seed, Stage, Start, TaskSpec
from rdvla.envs.calvin import assets
from rdvla.envs.calvin.bullet import choose_renderer, import_pybullet
from rdvla.envs.calvin.chains import ROBOT_OBS, evaluation_chain, random_start, start_obs
from rdvla.envs.calvin.info import Info
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.envs.calvin.simulation import Simulation
from rdvla.envs.calvin.tasks import is_solved
from rdvla.envs.calvin.varied import Look, draw_looks, vary
from rdvla.errors import ConfigError, SimulatorError
from rdvla.types import Observation

CAMERAS = {"primary": "static", "wrist": "gripper"}
"""Observation camera -> the simulator's camera."""


class CalvinEnv:
    """The play table in one scene. Every episode has a simulation of its own.

    An action is `[7]`, relative to the commanded pose: position in units of 2 cm, Euler angles in units of 0.05 rad
    (world frame), gripper +1 open or -1 close. The state is float32 `[8]`: position of the point between the fingertips
    (m), its Euler angles (rad), opening width (m), last gripper action.
    """

    def __init__(
        self,
        task: TaskSpec,
        scene: str,
        stage_steps: int,
        *,
        camera_size: int | None = None,
        alone: bool = False,
        varied: bool = False,
    ) -> None:
        """Read the scene; the simulation starts with the first episode.

        Args:
            task: what the episodes are called.
            scene: A, B, C or D.
            stage_steps: control steps allowed for each task.
            camera_size: height and width of both cameras in pixels; None takes the published 200 and 84.
            alone: play `task` itself, from drawn starts, instead of chains.
            varied: another table for every episode, see `rdvla.envs.calvin.varied`; from drawn starts alone.

        Raises:
            ConfigError: no data files, or a camera size below 1.
            MissingExtraError: pybullet is not installed.
        """
        self._embodiment = CALVIN.with_pictures(camera_size)
        import_pybullet()
        self._task = task
        self._alone = alone
        self._varied = varied
        self._scene = assets.load_scene(scene)
        self._stage_steps = stage_steps
        self._size = None if camera_size is None else (camera_size, camera_size)
        self._renderer = choose_renderer()
        self._simulation: Simulation | None = None
        self._stages: tuple[Stage, ...] = ()
        self._stage_index = 0
        self._stage_start: Info | None = None

    @property
    def task(self) -> TaskSpec:
        """The chains of the scene, or one task."""
        return self._task

    @property
    def embodiment(self) -> Embodiment:
        """CALVIN's Panda, with the pictures' sizes."""
        return self._embodiment

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The five tasks of the running chain, or the one."""
        return self._stages

    @property
    def stage_index(self) -> int:
        """Number of the present stage, from 0; as many as there are when all are solved."""
        return self._stage_index

    @property
    def simulation(self) -> Simulation:
        """The simulation of the running episode. Privileged: for scripted experts and recordings.

        Raises:
            SimulatorError: there is none.
        """
        if self._simulation is None:
            raise SimulatorError("call reset first, and nothing after close.")
        return self._simulation

    @property
    def stage_start(self) -> Info:
        """The moment when the present stage began, which the oracle compares with. Privileged.

        Raises:
            SimulatorError: no episode has begun.
        """
        if self._stage_start is None:
            raise SimulatorError("call reset first.")
        return self._stage_start

    def reset(self, start: Start) -> None:
        """Start a chain, or the one task, in a new simulation.

        Args:
            start: an `InitState` is the evaluation chain of that number, with the benchmark's sentences. A `Seed` draws
                a chain unless there is one task, a start that is none of the evaluation's, and for each task one of
                several sentences.

        Raises:
            ConfigError: a chain or seed out of range, or an evaluation chain where there are seeds alone.
            SimulatorError: the simulator broke.
        """
        match start:
            case InitState() if self._alone or self._varied:
                raise ConfigError(f"suite '{self._task.suite}' has no bundled starts; take a Seed.")
            case InitState(index):
                chain = evaluation_chain(index)
                self._begin(self._scene, start_obs(chain, self._scene), {})
                sentences = [SENTENCES[task][0] for task in chain.tasks]
            case Seed(value):
                rng = np.random.default_rng(value)
                with vary(self._scene, rng) if self._varied else nullcontext(self._scene) as scene:
                    chain, scene_obs = random_start(rng, scene, self._task.name if self._alone else None)
                    looks = draw_looks(rng, self._scene.data.parent) if self._varied else {}
                    self._begin(scene, scene_obs, looks)
                sentences = [str(rng.choice(SENTENCES[task])) for task in chain.tasks]
        self._stages = tuple(
            Stage(task, sentence, self._stage_steps) for task, sentence in zip(chain.tasks, sentences, strict=True)
        )
        self._stage_index = 0
        self._stage_start = self.simulation.info()

    def observe(self) -> Observation:
        """Draw both cameras and return what a policy sees, with the sentence of the present task.

        Raises:
            SimulatorError: no episode has begun.
        """
        state = self.state()
        stage = self._stages[min(self._stage_index, len(self._stages) - 1)]
        return Observation({name: self.frame(name) for name in CAMERAS}, state, stage.instruction)

    def frame(self, camera: str = "primary") -> NDArray[np.uint8]:
        """Draw one camera: uint8 `[H, W, 3]`, RGB, upright.

        Raises:
            ConfigError: an unknown camera.
        """
        if camera not in CAMERAS:
            raise ConfigError(f"unknown camera '{camera}'. Known: {', '.join(CAMERAS)}.")
        return self.simulation.draw(CAMERAS[camera])

    def state(self) -> NDArray[np.float32]:
        """Return the robot's state vector, float32 `[8]`."""
        obs = self.simulation.robot_obs()
        return np.concatenate([obs[:7], obs[-1:]]).astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one relative action `[7]`; return whether it solved the present task. If so, the next begins.

        Raises:
            ConfigError: the action has another shape, is not finite, or its gripper is neither -1 nor +1.
            SimulatorError: the simulator broke, or its physics diverged.
        """
        self.simulation.step(action)
        return self._judge()

    def step_to(self, position: ArrayLike, orientation: ArrayLike, gripper: float) -> bool:
        """Execute one absolute action (see `Simulation.step_to`); return whether it solved the present task."""
        self.simulation.step_to(position, orientation, gripper)
        return self._judge()

    def versions(self) -> Mapping[str, str]:
        """Return the versions that decide what an episode looks like and how it ends."""
        drawn_by = {} if self._simulation is None else self._simulation.drawn_by
        return {
            "pybullet": version("pybullet"),
            "numpy": np.__version__,
            "calvin_data": assets.revision(self._scene.data.parent),
            "renderer": self._renderer,
            **drawn_by,
        }

    def close(self) -> None:
        """Release the simulation. Closing twice does nothing."""
        simulation, self._simulation = self._simulation, None
        if simulation is not None:
            simulation.close()

    def __enter__(self) -> "CalvinEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, scene: assets.SceneConfig, scene_obs: NDArray[np.float64], looks: Mapping[str, Look]) -> None:
        self.close()
        simulation = Simulation(scene, renderer=self._renderer, size=self._size)
        try:
            if looks:
                simulation.paint(looks)
            simulation.reset(ROBOT_OBS, scene_obs)
        except BaseException:
            simulation.close()
            raise
        self._simulation = simulation

    def _judge(self) -> bool:
        if self._stage_index == len(self._stages):
            return False
        now = self.simulation.info()
        solved = is_solved(self._stages[self._stage_index].name, self.stage_start, now)
        if solved:
            self._stage_index += 1
            self._stage_start = now
        return solved
