"""A model server for AllenAI's vla-eval: `python -m rdvla.integrations.vla_eval --checkpoint DIR --port 8001`.

vla-eval runs the benchmark and sends every observation; this server decides, keeps the rest of a chunk per session and
records depth and signals beside vla-eval's own rows. Scratchpads are seeded as `rdvla eval` seeds them, by suite, task
and episode, so both play the same episodes. docs/vla_eval.md has the commands.
"""

import errno
import sys
import threading
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import numpy as np

from rdvla.embodiment import CALVIN, LIBERO, Embodiment
from rdvla.envs import InitState
from rdvla.envs.fit import differences
from rdvla.errors import ConfigError, MissingExtraError, ObservationError, RDVLAError, suggest
from rdvla.eval.protocol import episode_seed
from rdvla.horizons import DEFAULT_HORIZON, Horizon, make_horizon
from rdvla.hub import SHIPPED
from rdvla.policies.network import RDVLAPolicy, load_policy
from rdvla.policy import Ask, WarmStart, decision_ask
from rdvla.stops import choose_rule
from rdvla.types import ActionChunk, GripperConvention, Observation

try:
    from vla_eval.model_servers.base import SessionContext
    from vla_eval.model_servers.predict import PredictModelServer
    from vla_eval.recording import StepRecorder
    from vla_eval.specs import (
        GRIPPER_CLOSE_NEG,
        GRIPPER_CLOSE_POS,
        IMAGE_RGB,
        LANGUAGE,
        POSITION_DELTA,
        RAW,
        ROTATION_AA,
        ROTATION_EULER,
        STATE_EEF_POS_AA_GRIP,
        STATE_EEF_POS_EULER_GRIP,
        DimSpec,
    )
except ModuleNotFoundError:
    missing = MissingExtraError("vla-eval", "vla-eval")
    if __name__ == "__main__":  # like every other mistake of a command line
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    raise missing from None

GRIPPERS = {"open_is_negative": GRIPPER_CLOSE_POS, "open_is_positive": GRIPPER_CLOSE_NEG}


STATE = "states"
"""What most benchmarks call the state."""


@dataclass(frozen=True)
class Dialect:
    """How a family of vla-eval's benchmarks speaks.

    Attributes:
        robot: whose state and actions they are; None says nothing, so nothing is checked and actions are declared raw.
        cameras: our camera -> the benchmark's.
        rotation: what it takes the middle of an action for.
        state: what its `states` hold.
        params: asked of the benchmark's constructor.
        scale: what one unit of our actions is to it, by dimension; None if it takes them as they are.
    """

    robot: Embodiment | None
    cameras: Mapping[str, str]
    rotation: DimSpec = RAW
    state: DimSpec = RAW
    params: Mapping[str, Any] = field(default_factory=dict)
    scale: tuple[float, ...] | None = None


ANGLES = {"quat_no_antipodal": True}
"""LIBERO's data has rotations beyond pi as they are; by default vla-eval turns them round, and the arm goes astray."""

DIALECTS: Mapping[str, Dialect] = {
    "libero": Dialect(LIBERO, {"primary": "agentview", "wrist": "wrist"}, ROTATION_AA, STATE_EEF_POS_AA_GRIP, ANGLES),
    "calvin": Dialect(
        CALVIN,
        {"primary": "rgb_static", "wrist": "rgb_gripper"},
        ROTATION_EULER,
        STATE_EEF_POS_EULER_GRIP,
        scale=(0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 1.0),  # its deltas are metres and radians, CALVIN's shares of these
    ),
    "other": Dialect(None, {}),
}


@dataclass
class _Session:
    """What a benchmark process is at: its episode's seed, how often and at which step it was asked, where to record."""

    seed: int
    horizon: Horizon
    decisions: int = 0
    carry: bytes | None = None
    step: int = 0
    recorder: StepRecorder | None = None


class RDVLAModelServer(PredictModelServer):  # type: ignore[misc]  # vla-eval ships no types
    """Serves a policy that decides how long to think to vla-eval's benchmarks.

    There may be many sessions: with `max_batch_size` above 1 they are decided together, each stopping on its own.
    """

    def __init__(
        self,
        checkpoint: str = SHIPPED,
        *,
        depth: int | None = None,
        stop: str | None = None,
        threshold: float | None = None,
        max_depth: int | None = None,
        start: WarmStart = "noise",
        horizon: str = DEFAULT_HORIZON,
        seed: int = 7,
        statistics: str | None = None,
        gripper: GripperConvention | None = None,
        device: str = "cpu",
        precision: str | None = None,
        benchmark: str = "libero",
        cameras: dict[str, str] | None = None,
        state: str = STATE,
        max_batch_size: int = 1,
        max_wait_time: float = 0.01,
    ) -> None:
        """Load the policy.

        Args:
            checkpoint: a checkpoint folder, the name of a shipped policy, or a hub id.
            depth: iterations of every decision; without `depth` and `stop` the policy's default.
            stop: an adaptive rule of `rdvla.stops.StopRule`, e.g. `action_mse`.
            threshold: of that rule; None takes its default.
            max_depth: the most iterations of that rule; None takes 32.
            start: where scratchpads begin, a name of `rdvla.policy.WARM_STARTS`.
            horizon: actions executed per decision, or a rule of `rdvla.horizons`.
            seed: of the evaluation; scratchpads follow from it, the suite, the task and the episode.
            statistics: which of the checkpoint's statistics, if it has several.
            gripper: of a released checkpoint that does not say it: what the benchmark expects in the last action.
            device: a torch device.
            precision: `float32`, `bfloat16` or `int8`; None keeps the checkpoint's.
            benchmark: a name of `DIALECTS`: `libero` (LIBERO-PRO and -Plus speak it too), `calvin` or `other`.
            cameras: our camera -> the benchmark's, where the dialect does not know it.
            state: what the benchmark calls its state, if not `states`, e.g. `joint_state` (RoboTwin).
            max_batch_size: observations decided together, at most.
            max_wait_time: seconds to wait for them.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            ConfigError: an option is wrong.
        """
        super().__init__(max_batch_size=max_batch_size, max_wait_time=max_wait_time)
        if benchmark not in DIALECTS:
            raise ConfigError(f"unknown benchmark '{benchmark}'.{suggest(benchmark, DIALECTS)}")
        if seed < 0:
            raise ConfigError(f"seed must be at least 0, found {seed}.")
        self._dialect = DIALECTS[benchmark]
        self._ask = Ask(choose_rule(depth, stop, threshold=threshold, max_depth=max_depth), warm_start=start)
        self._horizon = horizon
        make_horizon(horizon)  # a wrong name is an error now
        self._policy: RDVLAPolicy = load_policy(
            checkpoint, statistics=statistics, gripper=gripper, device=device, precision=precision
        )
        metadata = self._policy.metadata
        self.chunk_size = metadata.chunk_size
        self._gripper: str = metadata.extra["gripper"]
        if unknown := set(cameras or {}) - set(metadata.cameras):
            raise ConfigError(f"the policy has no camera '{unknown.pop()}': it has {', '.join(metadata.cameras)}.")
        self._cameras = {name: name for name in metadata.cameras} | dict(self._dialect.cameras) | (cameras or {})
        self._require_fit(benchmark, {*self._dialect.cameras, *(cameras or {})})
        scale = self._dialect.scale
        self._scale = np.asarray(1.0 if scale is None else scale, dtype=np.float32)
        self._seed, self._state = seed, state
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def _require_fit(self, benchmark: str, cameras: Container[str]) -> None:
        """Make sure that the policy was trained for such a robot, as far as anybody says.

        Raises:
            ConfigError: a camera, the size of state or action, or the gripper differs, or its actions are no deltas.
        """
        robot = self._dialect.robot
        if robot is None:
            return
        if wrong := differences(self._policy.metadata, robot, cameras):
            raise ConfigError(
                f"the policy does not fit --benchmark {benchmark}: {'; '.join(wrong)}. Choose another, 'other' where "
                "none fits, or name a camera: --cameras.NAME=THEIRS."
            )

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Say what the actions are: end-effector deltas with the policy's own gripper sign, else raw numbers."""
        if self._dialect.robot is None or self._gripper not in GRIPPERS:
            return {"actions": RAW}
        return {"position": POSITION_DELTA, "rotation": self._dialect.rotation, "gripper": GRIPPERS[self._gripper]}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Say what is needed: the cameras under the benchmark's names, the state and the sentence."""
        images = {self._cameras[name]: IMAGE_RGB for name in self._policy.metadata.cameras}
        state = {"state": self._dialect.state} if self._dialect.robot is not None and self._state == STATE else {}
        return {**images, **state, "language": LANGUAGE}

    def get_observation_params(self) -> dict[str, Any]:
        """Ask the benchmark for the wrist camera and the state, in the form that the policy was trained on."""
        wrist = "wrist" in self._policy.metadata.cameras
        return {"send_wrist_image": wrist, "send_state": True, **self._dialect.params}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Begin an episode: forget the chunk at hand, seed the scratchpads, open the record."""
        await super().on_episode_start(config, ctx)
        recorder = None
        if ctx.recording_db_path:
            recorder = StepRecorder(ctx.recording_db_path, ctx.session_id, ctx.episode_id)
        seed = _seed_of(self._seed, config.get("task") or {})
        session = _Session(seed, make_horizon(self._horizon), recorder=recorder)
        with self._lock:
            self._sessions[ctx.session_id] = session

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Close the record."""
        await super().on_episode_end(result, ctx)
        with self._lock:
            session = self._sessions.pop(ctx.session_id, None)
        if session is not None and session.recorder is not None:
            session.recorder.close()

    async def on_observation(self, obs: dict[str, Any], ctx: SessionContext) -> None:
        """Answer with the next action at hand, or decide; a chain's next subtask drops what was planned.

        Raises:
            ObservationError: see `predict_batch`, which would fail for all sessions of its batch.
        """
        self._observation(obs)
        if obs.get("episode_restart"):
            self._chunk_buffers.pop(ctx.session_id, None)
            with self._lock:
                session = self._sessions[ctx.session_id]
                session.carry, session.step = None, 0
        await super().on_observation(obs, ctx)

    def predict_batch(self, obs_batch: list[dict[str, Any]], ctx_batch: list[SessionContext]) -> list[dict[str, Any]]:
        """Decide for several sessions at once.

        Returns:
            For each: float32 `actions` `[n, action_dim]`, those to execute before the next decision.

        Raises:
            ObservationError: a camera, the state or the instruction is missing, or the state has another size; the
                message names what came.
        """
        with self._lock:
            sessions = [self._sessions[ctx.session_id] for ctx in ctx_batch]
        chunks = self._policy.infer_batch(
            [self._observation(obs) for obs in obs_batch],
            [
                decision_ask(replace(self._ask, seed=session.seed), session.decisions, session.carry, step=session.step)
                for session in sessions
            ],
        )
        answers = []
        for chunk, session, ctx in zip(chunks, sessions, ctx_batch, strict=True):
            session.decisions += 1
            session.carry = chunk.carry
            n_steps = session.horizon.steps(chunk.num_recurrences, len(chunk.actions))
            session.step += n_steps
            if session.recorder is not None:
                session.recorder.record({"step": ctx.step, **_row(chunk, n_steps)})
            answers.append({"actions": chunk.actions[:n_steps] * self._scale})
        return answers

    def _observation(self, obs: Mapping[str, Any]) -> Observation:
        images = obs.get("images") or {}
        for camera in self._policy.metadata.cameras:
            if self._cameras[camera] not in images:
                raise ObservationError(
                    f"no image '{self._cameras[camera]}' for the policy's camera '{camera}': the benchmark sends "
                    f"{', '.join(images) or 'none'}. Choose --benchmark or name it: --cameras.{camera}=NAME."
                )
        if self._state not in obs:
            raise ObservationError(
                f"the benchmark sends no '{self._state}': it sends {', '.join(obs)}. If it has send_state, set it; if "
                "its state is among these, name it: --state=NAME."
            )
        instruction = obs.get("task_description")
        if not isinstance(instruction, str):
            raise ObservationError("the benchmark sends no 'task_description', so there is nothing to do.")
        found = {camera: images[self._cameras[camera]] for camera in self._policy.metadata.cameras}
        state = np.asarray(obs[self._state], dtype=np.float32)
        if state.shape != (self._policy.metadata.state_dim,):
            raise ObservationError(
                f"the benchmark's '{self._state}' has shape {list(state.shape)}, the policy sees "
                f"{self._policy.metadata.state_dim} numbers: it was trained for another robot or another state."
            )
        return Observation(found, state, instruction)


def _seed_of(run_seed: int, task: Mapping[str, Any]) -> int:
    """Return the seed that `rdvla eval` gives this episode; without a suite, the task's name stands for it."""
    suite = str(task.get("suite") or task.get("name") or "")
    return episode_seed(run_seed, suite, int(task.get("task_id") or 0), InitState(int(task.get("episode_idx") or 0)))


def _row(chunk: ActionChunk, n_steps: int) -> dict[str, Any]:
    row: dict[str, Any] = {"num_recurrences": chunk.num_recurrences, "n_action_steps": n_steps}
    if chunk.convergence:
        row["convergence"] = [float(f"{value:.4g}") for value in chunk.convergence]
    return row | {name: float(f"{value:.4g}") for name, value in chunk.signals.items()}


def main() -> None:
    """Start the server with vla-eval's own command line, on the loopback address unless `--host` names another.

    Every option of `RDVLAModelServer` may also be given directly: `--depth 12` for `--args.depth 12`.
    """
    from vla_eval.model_servers.serve import run_server

    sys.argv[1:] = ["--host=127.0.0.1", *map(_nested, sys.argv[1:])]
    try:
        run_server(RDVLAModelServer)
    except (RDVLAError, OSError, BaseExceptionGroup) as error:  # vla-eval serves within groups of tasks
        first = _first(error)
        if isinstance(first, RDVLAError):
            reason = str(first)
        elif isinstance(first, OSError) and first.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            reason = f"{first}; choose another --port or --host."
        else:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _nested(argument: str) -> str:
    """Return `--args.depth=12` for `--depth=12`: vla-eval keeps a server class's options under `args`."""
    name = argument.removeprefix("--").partition("=")[0].partition(".")[0]
    return f"--args.{argument[2:]}" if argument.startswith("--") and name in OPTIONS else argument


OPTIONS = frozenset(signature(RDVLAModelServer).parameters)
"""Names of the options of `RDVLAModelServer`."""


if __name__ == "__main__":
    main()
