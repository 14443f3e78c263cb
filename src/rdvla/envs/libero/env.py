"""LIBERO as an `Env`: the published protocol, with rendering only when somebody looks.

The stock environment renders both cameras at every control step, which is 90 % of its cost on a CPU. Here the two
camera observables stay in place, so they are sampled at exactly the same moments, but they take a copy of
where everything is (microseconds) instead of a picture. `observe` renders that copy: the same pixels, when needed.
"""

import atexit
import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import LIBERO, Embodiment
from rdvla.envs.base import InitState, Seed, Stage, Start, TaskSpec, pick
from rdvla.envs.libero import simulator
from rdvla.envs.libero.resets import Resets, numpy_random, seeded
from rdvla.envs.libero.suites import LiberoTask, load_init_states, load_task
from rdvla.errors import ConfigError, SimulatorError
from rdvla.types import Observation

CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}
"""Observation camera -> the simulator's camera."""
SETTLING_STEPS = 10
SETTLING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)

_SNAPSHOT = "snapshot"
_STATE_OBSERVABLES = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_DRAWN_FIELDS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "subtree_com"),
)
_DIVERGENCE_WARNINGS = (4, 5, 6)  # MuJoCo's mjWARN_BADQPOS, _BADQVEL, _BADQACC: it then resets the scene by itself


class LiberoEnv:
    """One LIBERO task. Use it from one thread, and close it (or use it as a context manager).

    An action is float `[7]`: three translation and three rotation deltas of the end effector in [-1, 1], and the
    gripper (-1 open, +1 close). The state is described in `rdvla.types.Observation`.
    """

    stage_index = 0  # the only one

    def __init__(self, suite: str, task_id: int, *, camera_size: int | None = None) -> None:
        """Start the simulator for a task (5 to 15 seconds).

        Args:
            suite: a name from `suites.list_suites()`.
            task_id: index in `suites.list_tasks(suite)`.
            camera_size: height and width of the observed images, in pixels; None takes 256.

        Raises:
            ConfigError: unknown suite or task, or a camera size below 1.
            MissingExtraError: LIBERO is not installed.
            SimulatorError: the simulator or its renderer does not start.
        """
        self._env: Any = None
        self._files: LiberoTask = load_task(suite, task_id)
        self._embodiment = LIBERO.with_pictures(camera_size)
        self.camera_size = self._embodiment.cameras["primary"][0]
        self._ready = False
        self._init_states: NDArray[np.float64] | None = None
        simulator.prepare()
        self._env = _create(self._files)
        simulator.release_compiler_memory()
        self._snapshot = self._install_snapshot()
        self._resets = Resets(self.unwrapped)
        _register_for_exit(self)

    @property
    def task(self) -> TaskSpec:
        """The task being simulated."""
        return self._files.spec

    @property
    def embodiment(self) -> Embodiment:
        """LIBERO's Panda, with pictures of `camera_size`."""
        return self._embodiment

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The task itself."""
        return self.task.stages

    def reset(self, start: Start) -> None:
        """Start an episode and let the scene settle for `SETTLING_STEPS` steps.

        The result depends on `start` alone, not on earlier episodes. An `InitState` gives the scene that the
        published evaluation loop has in its episode of that number: the bundled state gives the joints, and the
        fixtures (which the bundled states do not cover) stand where that loop's random numbers place them. A `Seed`
        gives a placement of the environment's own sampler.

        Raises:
            ConfigError: a state or seed out of range.
            SimulatorError: the simulator broke.
        """
        with self._guard("reset"):
            match start:
                case InitState(index):
                    self._reset_to_bundled(index)
                case Seed(value):
                    self._reset_to_sampled(value)
            self._settle()
        self._ready = True

    def restore(self, state: NDArray[np.float64], *, episode: int = 0) -> None:
        """Start an episode from a recorded state of the simulator, and let the scene settle as `reset` does.

        Args:
            state: float64 `[1 + nq + nv]`: time, positions, velocities.
            episode: which episode of the published loop to repeat; it decides where fixtures stand, which `state` does
                not cover.

        Raises:
            ConfigError: the state has another size than this task's simulation.
            SimulatorError: the simulator broke.
        """
        expected = len(self._env.get_sim_state())
        if state.shape != (expected,):
            raise ConfigError(f"{self.task.name} has states of {expected} numbers, found shape {list(state.shape)}.")
        with self._guard("restore"):
            self._resets.published(episode)
            self._env.set_init_state(state)
            self._settle()
        self._ready = True

    def observe(self) -> Observation:
        """Render both cameras and return what a policy sees.

        The images are uint8 `[camera_size, camera_size, 3]`, rotated by 180 degrees (the robot at the top).
        """
        images = {camera: self.frame(camera) for camera in CAMERAS}
        return Observation(images=images, state=self.state(), instruction=self.stages[0].instruction)

    def frame(self, camera: str = "primary", size: int | None = None) -> NDArray[np.uint8]:
        """Render one camera, e.g. for a video.

        Args:
            camera: `primary`, `wrist`, or one of the simulator's own camera names.
            size: height and width in pixels; None takes `camera_size`.

        Returns:
            uint8 `[size, size, 3]`, RGB, rotated like the observations.

        Raises:
            ConfigError: an unknown camera.
        """
        self._require_reset("frame")
        name = CAMERAS.get(camera, camera)
        known = self.sim.model.camera_names
        if name not in known:
            raise ConfigError(f"unknown camera '{camera}'. Known: {', '.join([*CAMERAS, *known])}.")
        pixels = self.camera_size if size is None else size
        with self._guard("render"):
            image = self._render(name, pixels)
        return np.ascontiguousarray(image[::-1, ::-1])

    def state(self) -> NDArray[np.float32]:
        """Return the robot's state vector, float32 `[8]`, without rendering."""
        self._require_reset("state")
        observables = self.unwrapped._observables
        position, quaternion, gripper = (observables[name].obs for name in _STATE_OBSERVABLES)
        return np.concatenate([position, axis_angle(quaternion), gripper]).astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one action `[7]`; return whether the task is solved.

        Raises:
            ConfigError: the action has another shape or is not finite.
            SimulatorError: the simulator broke, or its physics diverged.
        """
        self._require_reset("step")
        action = LIBERO.check_action(action)
        with self._guard("step"):
            _, _, success, _ = self.unwrapped.step(action)
        return bool(success)

    def versions(self) -> dict[str, str]:
        """Return the versions of everything that decides an episode's outcome and pixels."""
        return simulator.versions()

    @property
    def sim(self) -> Any:
        """The simulation (robosuite's `MjSim`). Privileged."""
        return self.unwrapped.sim

    @property
    def unwrapped(self) -> Any:
        """The robosuite environment inside LIBERO's wrapper. Privileged."""
        if self._env is None:
            raise SimulatorError(f"the environment of {self.task.suite} task {self.task.task_id} is closed.")
        return self._env.env

    def close(self) -> None:
        """Release the simulator and its GL context. Closing twice does nothing."""
        if self._env is None:
            return
        env, self._env = self._env, None
        self._snapshot = None
        self._ready = False
        sim, context = env.env.sim, env.env.sim._render_context_offscreen
        env.env._observables.clear()
        sim._render_context_offscreen = None
        if context is not None:
            context.gl_ctx.make_current()
            context.con.free()
            context.gl_ctx.free()
        env.close()
        del env, sim, context
        gc.collect()  # the simulation is full of reference cycles, and holds a few hundred MB

    def __enter__(self) -> "LiberoEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _install_snapshot(self) -> Any:
        """Add the observable that copies the simulator's data, and switch off those that nobody reads."""
        import mujoco
        from robosuite.utils.observables import Observable, sensor

        env = self.unwrapped
        model, source = env.sim.model._model, env.sim.data._data
        copy = mujoco.MjData(model)

        @sensor(modality="snapshot")  # type: ignore[untyped-decorator]
        def snapshot(_: object) -> NDArray[np.float64]:
            for field in _DRAWN_FIELDS:
                getattr(copy, field)[:] = getattr(source, field)
            return np.zeros(1)

        for name, observable in env._observables.items():
            if name not in _STATE_OBSERVABLES:
                observable.set_enabled(False)
                observable.set_active(False)
        env.add_observable(Observable(_SNAPSHOT, sensor=snapshot, sampling_rate=env.control_freq))
        return copy

    def _settle(self) -> None:
        for _ in range(SETTLING_STEPS):
            self.unwrapped.step(SETTLING_ACTION)

    def _load_init_states(self) -> NDArray[np.float64]:
        if self._init_states is None:
            self._init_states = load_init_states(self._files)
        return self._init_states

    def _reset_to_bundled(self, index: int) -> None:
        owner = f"{self.task.suite} task {self.task.task_id} has states"
        state = pick(list(self._load_init_states()), index, "init_state", owner)
        self._resets.published(index)
        self._env.set_init_state(state)

    def _reset_to_sampled(self, seed: int) -> None:
        self._place(int(seed))
        # Keeps the observables in the same phase as a bundled initial state does.
        self._env.set_init_state(self._env.get_sim_state())

    def _place(self, seed: int) -> None:
        self._resets.sampled(seed)

    def _render(self, camera: str, size: int) -> NDArray[np.uint8]:
        sim = self.sim
        context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        context.data = SimpleNamespace(_data=self._snapshot)
        try:
            image: NDArray[np.uint8] = sim.render(camera_name=camera, width=size, height=size)
        finally:
            context.data = sim.data
        return image

    def _require_reset(self, method: str) -> None:
        if not self._ready:
            raise SimulatorError(f"{method}: call reset first, and nothing after close.")

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Turn anything that breaks inside the simulator, diverged physics included, into a `SimulatorError`."""
        where = f"{self.task.suite} task {self.task.task_id}: {what}"
        try:
            yield
        except (ConfigError, SimulatorError):
            raise
        except Exception as error:
            self._ready = False
            raise SimulatorError(f"{where} failed in the simulator: {error or type(error).__name__}") from error
        if self.sim.data._data.warning.number[[*_DIVERGENCE_WARNINGS]].any():
            self._ready = False
            raise SimulatorError(f"{where}: the physics diverged.")


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation vector `[3]` (rad) of a unit quaternion `[4]` (x, y, z, w); zeros for no rotation.

    The angle is in [0, 2 pi): this is the published code's formula, which does not fold it to [0, pi].
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    vector: NDArray[np.float64] = np.asarray(quaternion[:3]) * 2.0 * np.arccos(w) / sine
    return vector


def _create(files: LiberoTask) -> Any:
    from libero.libero.envs import OffScreenRenderEnv

    spec = files.spec
    if not files.bddl_file.is_file():
        raise ConfigError(f"suite '{spec.suite}' task {spec.task_id}: no task file '{files.bddl_file}'.")
    try:
        with simulator.quiet_import(), numpy_random(seeded(0)):
            return OffScreenRenderEnv(
                bddl_file_name=str(files.bddl_file), use_camera_obs=False, hard_reset=False, ignore_done=True
            )
    except Exception as error:
        reason = f"{error or type(error).__name__}"
        raise SimulatorError(f"{spec.suite} task {spec.task_id} does not start: {reason}") from error


_open_environments: "weakref.WeakSet[LiberoEnv]" = weakref.WeakSet()


def _register_for_exit(env: LiberoEnv) -> None:
    _open_environments.add(env)
    _close_at_exit_before_gl()


@functools.cache
def _close_at_exit_before_gl() -> None:
    """Close forgotten environments before the GL display goes, which was opened (and registered) just before this."""
    atexit.register(_close_all)


def _close_all() -> None:
    for env in list(_open_environments):
        env.close()
