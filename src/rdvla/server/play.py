"""Plays episodes in a local simulator for the live page: paced, pausable, one task again and again."""

from collections.abc import Callable, Sequence

from rdvla.envs import Env, Start
from rdvla.envs.episode import play
from rdvla.execution import Executor
from rdvla.robot.clock import Clock, SystemClock
from rdvla.robot.loop import Pacer
from rdvla.server.live import LiveControls, LiveFeed

PAUSE_S = 0.05
APPLAUSE_S = 1.0


class LivePlayer:
    """Drives one environment with one policy and shows what happens.

    Attributes:
        finished: episodes that ran to their end.
        solved: how many of them solved the task.
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
        self._env = env
        self._executor = executor
        self._feed = feed
        self._starts = list(starts)
        self._rate_hz = rate_hz
        self._show_every = show_every
        self._clock = clock or SystemClock()
        self._started = 0

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
        turns = play(self._env, self._starts[self._started % len(self._starts)])
        self._executor.reset(seed=self._started)
        self._started += 1
        self._show(0, "running", render=True)
        pacer = Pacer(self._rate_hz, self._clock)
        for turn in turns:
            if not self._may_go_on(turn.step, wished, is_over):
                return
            if turn.first and turn.step:
                self._executor.next_stage()
            pacer.wait()
            turn.execute(self._executor.act(self._env.observe))
            shown = turn.step + 1
            self._show(shown, "running", render=self._show_every > 0 and shown % self._show_every == 0)
        self._end(turn.step + 1, solved=turn.stages_solved == len(self._env.stages))

    def _may_go_on(self, step: int, wished: int, is_over: Callable[[], bool]) -> bool:
        """Wait while paused; return False if a new episode is wished or everything is over."""
        if self._controls.paused:
            self._show(step, "paused", render=False)
        while self._controls.paused and self._controls.episode == wished and not is_over():
            self._clock.sleep(PAUSE_S)
        return self._controls.episode == wished and not is_over()

    def _end(self, step: int, *, solved: bool) -> None:
        self.finished += 1
        self.solved += solved
        self._show(step, "solved" if solved else "failed", render=True)
        self._clock.sleep(APPLAUSE_S)

    @property
    def _controls(self) -> LiveControls:
        return self._feed.controls

    def _show(self, step: int, status: str, *, render: bool) -> None:
        task = self._env.task
        images = self._env.observe().images if render and self._feed.has_viewers else None
        self._feed.show(
            images,
            suite=task.suite,
            task_id=task.task_id,
            step=step,
            max_steps=task.max_steps,
            episode=self._started,
            solved=self.solved,
            finished=self.finished,
            status=status,
        )
