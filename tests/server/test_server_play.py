"""`rdvla play`: episodes for the live page, and what its buttons do."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser_page, until

from chain_fakes import ChainEnv, Pusher
from patience import PATIENCE_S
from rdvla.embodiment import LIBERO
from rdvla.envs import InitState, Start, TaskSpec
from rdvla.errors import ServeError
from rdvla.execution import Executor, Synchronous
from rdvla.policies.sources import connect
from rdvla.policy import PLAIN, Ask, PolicyMetadata
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.server.live import LiveControls, LiveFeed, LiveRecord
from rdvla.server.play import LiveLoop, Shown
from rdvla.stops import StopRule
from rdvla.types import ActionChunk, Observation
from serve_fakes import QUICK, FakePolicy, open_socket
from serve_simulation import FakeClock

WEB = QUICK.model_copy(update={"web": True})


class CountingEnv:
    """Solved at step 7 of every odd initial state; counts what is done with it."""

    task = TaskSpec("fake", 3, "count", "count to seven", 12)

    def __init__(self) -> None:
        self.resets: list[int] = []
        self.steps = 0
        self.looks = 0

    embodiment = LIBERO
    stages = task.stages
    stage_index = 0

    def reset(self, start: Start) -> None:
        assert isinstance(start, InitState)
        self.resets.append(start.index)
        self.steps = 0

    def observe(self) -> Observation:
        self.looks += 1
        images = {camera: np.full((8, 8, 3), self.steps, np.uint8) for camera in ("primary", "wrist")}
        return Observation(images, self.state(), "count to seven")

    def state(self) -> np.ndarray:
        return np.full(8, self.steps, np.float32)

    def step(self, action: np.ndarray) -> bool:
        self.steps += 1
        return self.steps == 7 and self.resets[-1] % 2 == 1

    def frame(self, camera: str) -> np.ndarray:
        return self.observe().images[camera]

    def versions(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


class WatchedFeed(LiveFeed):
    """Remembers what was shown, and lets a test act on it."""

    def __init__(self, reactions: Sequence[tuple[int, str, dict[str, Any]]] = ()) -> None:
        super().__init__(simulator=True)
        self.shown: list[dict[str, Any]] = []
        self.reactions = list(reactions)

    def show(self, images: Any, **scene: Any) -> None:
        self.shown.append(scene)
        if self.reactions and (scene["step"], scene["status"]) == self.reactions[0][:2]:
            self.controls = self.controls.model_copy(update=self.reactions.pop(0)[2])


def player(env: CountingEnv, feed: LiveFeed, **options: Any) -> LiveLoop:
    starts = [InitState(index) for index in (4, 5, 6)]
    executor = Executor(FakePolicy(), Synchronous(5))
    return LiveLoop(env, executor, feed, starts=starts, rate_hz=20, clock=FakeClock(), **options)


def test_episodes_go_through_the_initial_states() -> None:
    env, feed = CountingEnv(), WatchedFeed()
    made = player(env, feed)
    made.run(4)
    assert env.resets == [4, 5, 6, 4]
    assert (made.finished, made.solved) == (4, 1)
    assert [scene["status"] for scene in feed.shown if scene["status"] != "running"] == [
        "failed",
        "solved",
        "failed",
        "failed",
    ]
    assert feed.shown[-1] == {
        "suite": "fake", "task_id": 3, "start": "state 4", "stages": ["count to seven"], "stage": 0, "step": 12,
        "max_steps": 12, "episode": 4, "solved": 1, "finished": 4, "stages_solved": 1, "status": "failed",
    }  # fmt: skip


def test_a_chain_is_shown_instruction_by_instruction() -> None:
    feed = WatchedFeed()
    executor = Executor(Pusher(), Synchronous(5))
    starts = [InitState(2), InitState(4)]
    made = LiveLoop(ChainEnv(), executor, feed, starts=starts, rate_hz=20, clock=FakeClock())
    made.run(2)
    assert all(scene["stages"] == ["do one", "do two", "do three"] for scene in feed.shown)
    shown = [(scene["stage"], scene["step"], scene["max_steps"], scene["status"]) for scene in feed.shown]
    first = [(stage, step, limit, "running") for stage, limit in enumerate((5, 3, 5)) for step in range(3)]
    assert shown[:10] == [*first, (2, 2, 5, "solved")], "every stage takes two steps of its own"
    assert shown[-2:] == [(1, 3, 3, "running"), (1, 3, 3, "failed")], "four steps are too many for the second"
    assert (made.finished, made.solved, made.stages_solved) == (2, 1, 3 + 1)
    assert feed.shown[-1]["start"] == "state 4"


class Blind(Pusher):
    """Takes one action per decision and no picture, as an expert does; counts how often it is reset."""

    metadata = PolicyMetadata("blind", (), 1, 1, 1, {})
    resets = 0

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        assert not observation.images
        return ActionChunk(np.zeros((1, 1), np.float32))

    def reset(self) -> None:
        self.resets += 1


class Diary(LiveFeed):
    """Remembers which instructions were decided on."""

    def __init__(self) -> None:
        super().__init__(simulator=True)
        self.obeyed: list[str] = []

    def publish(self, record: LiveRecord) -> None:
        self.obeyed.append(record.observation.instruction)
        super().publish(record)


def test_an_expert_is_shown_without_a_picture_and_reset_at_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    env, blind, feed = ChainEnv(), Blind(), Diary()
    monkeypatch.setattr(env, "observe", lambda: pytest.fail("nobody needs a picture"))
    with serving(blind, WEB, live=feed) as server, RemotePolicy(server.url) as remote:
        executor = Executor(Shown(blind, remote), Synchronous(5))
        made = LiveLoop(env, executor, feed, starts=[InitState(2)], rate_hz=1000, clock=FakeClock())
        made.run(1)
    assert made.stages_solved == 3
    assert blind.resets == 3
    assert feed.obeyed == [f"do {stage}" for stage in ("one", "two", "three") for _ in range(2)]


def test_the_page_lists_the_instructions_of_a_chain(tmp_path: Path) -> None:
    feed = LiveFeed(simulator=True)

    def classes() -> str:
        return "[...document.querySelectorAll('#stages li')].map((item) => item.className).join()"

    with serving(Pusher(), WEB, live=feed) as server, browser_page(1280, 860) as page:
        page.goto(server.url.replace("ws", "http", 1))
        until(page, "document.querySelector('#connection').textContent === 'connected'")
        executor = Executor(Pusher(), Synchronous(5))
        player = LiveLoop(
            ChainEnv(), executor, feed, starts=[InitState(4), InitState(1)], rate_hz=1000, clock=FakeClock()
        )
        player.run(1)
        until(page, f"{classes()} === 'done,failed,'")
        assert page.locator("#stages li").all_text_contents() == ["do one", "do two", "do three"]
        assert page.locator("#tally").text_content() == "episode 1, 0 of 1 solved, 1.00 in a row"
        player.run(2)
        until(page, f"{classes()} === 'done,done,done'")
        page.screenshot(path=tmp_path / "chain.png")


def test_nobody_watching_means_no_rendering_for_the_page() -> None:
    env = CountingEnv()
    player(env, WatchedFeed(), show_every=1).run(1)
    assert env.looks == 3  # one per decision: 12 steps, 5 at a time


def test_a_wish_for_a_new_episode_ends_this_one() -> None:
    env, feed = CountingEnv(), WatchedFeed([(3, "running", {"episode": 1})])
    made = player(env, feed)
    made.run(1)
    assert env.resets == [4, 5]
    assert made.finished == 1


def test_pausing_holds_the_simulator() -> None:
    env = CountingEnv()
    feed = WatchedFeed([(3, "running", {"paused": True})])
    made = player(env, feed)
    clock = made._clock
    sleeps = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len([s for s in sleeps if s == 0.05]) == 40:
            feed.controls = LiveControls()

    clock.sleep = sleep  # type: ignore[method-assign]
    made.run(1)
    assert [scene["status"] for scene in feed.shown[3:6]] == ["running", "paused", "running"]
    assert env.steps == 12


def test_over_means_over() -> None:
    env, feed = CountingEnv(), WatchedFeed()
    made = player(env, feed)
    made.run(None, is_over=lambda: len(feed.shown) > 20)
    assert 20 < len(feed.shown) < 25


def test_the_whole_thing_with_a_server_and_a_viewer() -> None:
    env, feed = CountingEnv(), LiveFeed(simulator=True)
    with serving(FakePolicy(), WEB, live=feed) as server, RemotePolicy(server.url) as remote:
        viewer = open_socket(server.url + "/live")
        hello = json.loads(viewer.recv(timeout=PATIENCE_S))
        assert hello["hello"]["simulator"] is True
        made = LiveLoop(env, Executor(remote, Synchronous(5)), feed, starts=[InitState(1)], rate_hz=1000, clock=None)
        thread = threading.Thread(target=made.run, args=(1,))
        thread.start()
        decisions, scene = [], {}
        while scene.get("status") != "solved":
            news = json.loads(viewer.recv(timeout=PATIENCE_S))
            decisions += news.get("decisions", [])
            scene = news.get("scene", scene)
        thread.join()
        viewer.close()
    assert [decision["number"] for decision in decisions] == [1, 2]
    assert decisions[0]["instruction"] == "count to seven"
    assert scene["step"] == 7


@pytest.mark.parametrize("mode", ["client", "depth", "adaptive", "budget"])
def test_controls_reach_the_policy(mode: str) -> None:
    feed = LiveFeed()
    feed.controls = LiveControls(mode=mode, depth=6, rule="latent", budget_ms=4, instruction=" go ")  # type: ignore[arg-type]
    served = FakePolicy()
    with serving(served, WEB, live=feed) as server, RemotePolicy(server.url) as remote:
        chunk = remote.infer(CountingEnv().observe(), Ask(seed=1))
    assert chunk.num_recurrences == {"client": 12, "depth": 6, "adaptive": 6, "budget": 4}[mode]
    assert len(chunk.convergence) == (6 if mode == "adaptive" else 0)
    assert served.seen[-1].instruction == "go"


@pytest.mark.parametrize("controls", [LiveControls(mode="depth", depth=6), LiveControls(instruction="go")])
def test_an_evaluation_is_not_steered_from_the_page(controls: LiveControls) -> None:
    feed = LiveFeed()
    with serving(FakePolicy(), WEB, live=feed) as server, connect(server.url) as remote:
        ask = Ask(StopRule.fixed(12), seed=1)
        remote.infer(CountingEnv().observe(), ask)
        feed.controls = controls
        with pytest.raises(ServeError, match=r"the live page of .* overrules"):
            remote.infer(CountingEnv().observe(), ask)
        feed.controls = LiveControls()
        assert remote.infer(CountingEnv().observe(), ask).num_recurrences == 12
