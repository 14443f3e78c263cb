"""Plays episodes in a local simulator for the live page: paced, pausable, one task again and again."""

from collections.abc import Callable, Sequence
from functools import partial

from rdvla.envs import Env, Start
from rdvla.envs.episode import play
from rdvla.execution import Executor
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.robot.clock import Clock, SystemClock
from rdvla.robot.loop import Pacer
from rdvla.server.live import LiveControls, LiveFeed
from rdvla.types import ActionChunk, Observation

PAUSE_S = 0.05
APPLAUSE_S = 1.0


class Shown(Policy):
    """A policy that acts on the simulator itself, asked through its server, so that the page shows its decisions."""

    def __init__(self, policy: Policy, served: Policy) -> None:
        """Ask `served`, the client of a server of `policy`; reset `policy`."""
        self._policy = policy
        self._served = served

    @property
    def metadata(self) -> PolicyMetadata:
        """What the server says."""
        return self._served.metadata

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Ask the server."""
        return self._served.infer(observation, ask)

    def reset(self) -> None:
        """Reset the policy itself: a server keeps no state."""
        self._policy.reset()


class LiveLoop:
    """Drives one environment with one policy and shows what happens.

    Attributes:
        finished: episodes that ran to their end.
        solved: how many of them solved the task, in all its stages.
        stages_solved: how many stages they solved together.
    """

    def __init__(
        self,
        env: Env,
        executor: Executor,
        feed: LiveFeed,
        *,
        starts: Sequence[Start],
        rate_hz: float,
        show_every: int = 2,
        clock: Clock | None = None,
    ) -> None:
        """Prepare to play; `run` plays.

        Args:
            env: used from the thread that calls `run` only.
            executor: asks the policy and executes its chunks.
            feed: shows images and progress; its controls pause and restart.
            starts: where episodes start, one after the other, over and over.
            rate_hz: control steps per second, at most.
            show_every: render for the page every n-th control step; 0 shows only what the policy sees.
            clock: None takes the machine's.
        """
        self.finished = 0
        self.solved = 0
        self.stages_solved = 0
        self._env = env
        self._executor = executor
        self._feed = feed
        self._starts = list(starts)
        self._rate_hz = rate_hz
        self._show_every = show_every
        self._clock = clock or SystemClock()
        self._started = 0
        self._start = self._starts[0]
        self._stage = self._step = 0

    def run(self, episodes: int | None, *, is_over: Callable[[], bool] = lambda: False) -> None:
        """Play `episodes` episodes (None: for ever), until `is_over()`.

        Raises:
            SimulatorError: the simulator broke.
            ServeError: the policy does not answer.
        """
        while not is_over() and (episodes is None or self.finished < episodes):
            self._play(is_over)

    def _play(self, is_over: Callable[[], bool]) -> None:
        wished = self._feed.controls.episode
        self._start = self._starts[self._started % len(self._starts)]
        self._stage = self._step = 0
        turns = play(self._env, self._start)
        self._executor.reset(seed=self._started)
        self._started += 1
        self._show("running", render=True)
        pacer = Pacer(self._rate_hz, self._clock)
        pictures = bool(self._executor.policy.metadata.cameras)
        for turn in turns:
            if not self._may_go_on(wished, is_over):
                return
            if turn.first and turn.step:
                self._stage, self._step = turn.stage_index, 0
                self._executor.next_stage()
                self._show("running", render=False)
            pacer.wait()
            turn.execute(self._executor.act(partial(turn.observe, pictures=pictures)))
            self._step += 1
            self._show("running", render=self._show_every > 0 and (turn.step + 1) % self._show_every == 0)
        self._end(turn.stages_solved)

    def _may_go_on(self, wished: int, is_over: Callable[[], bool]) -> bool:
        """Wait while paused; return False if a new episode is wished or everything is over."""
        if self._controls.paused:
            self._show("paused", render=False)
        while self._controls.paused and self._controls.episode == wished and not is_over():
            self._clock.sleep(PAUSE_S)
        return self._controls.episode == wished and not is_over()

    def _end(self, stages_solved: int) -> None:
        solved = stages_solved == len(self._env.stages)
        self.finished += 1
        self.solved += solved
        self.stages_solved += stages_solved
        self._show("solved" if solved else "failed", render=True)
        self._clock.sleep(APPLAUSE_S)

    @property
    def _controls(self) -> LiveControls:
        return self._feed.controls

    def _show(self, status: str, *, render: bool) -> None:
        task, stages = self._env.task, self._env.stages
        images = self._env.observe().images if render and self._feed.has_viewers else None
        self._feed.show(
            images,
            suite=task.suite,
            task_id=task.task_id,
            start=str(self._start),
            stages=[stage.instruction for stage in stages],
            stage=self._stage,
            step=self._step,
            max_steps=stages[self._stage].max_steps,
            episode=self._started,
            solved=self.solved,
            finished=self.finished,
            stages_solved=self.stages_solved,
            status=status,
        )
