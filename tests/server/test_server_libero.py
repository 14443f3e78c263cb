"""The shipped policy in the real simulator, through everything that serving has: stock client, evaluator, live page."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import browser_page, until
from test_server_openpi import stock_client

from rdvla.envs import Env, InitState, make_env
from rdvla.execution import Executor, Synchronous
from rdvla.policy import Ask, Policy, decision_seed
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.server.live import LiveFeed
from rdvla.server.play import LiveLoop
from rdvla.stops import StopRule
from serve_fakes import QUICK

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "rdvla_tiny_libero"
DEPTH = 8

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.fixture(scope="module")
def policy() -> Policy:
    if not (SHIPPED / "config.json").is_file():
        pytest.skip(f"the shipped policy is not at {SHIPPED}")
    from rdvla.policies.network import load_policy

    return load_policy(SHIPPED)


@contextmanager
def libero(task_id: int = 0) -> Iterator[Env]:
    pytest.importorskip("libero", reason="pip install 'rdvla[libero]'")
    env = make_env("libero_object", task_id)
    try:
        env.reset(InitState(0))
        yield env
    finally:
        env.close()


def drive(env: Env, act) -> tuple[list[np.ndarray], bool]:  # type: ignore[no-untyped-def]
    """Play one episode; return its actions and whether the task was solved."""
    actions: list[np.ndarray] = []
    for step in range(env.task.max_steps):
        actions.append(np.asarray(act(step), np.float32))
        if env.step(actions[-1]):
            return actions, True
    return actions, False


def test_a_whole_episode_with_the_stock_client_is_the_local_one(policy: Policy, openpi_python: Path) -> None:
    seeds = [decision_seed(5, decision) for decision in range(200)]
    with libero() as env:
        executor = Executor(policy, Synchronous(5), Ask(StopRule.fixed(DEPTH)))
        executor.reset(seed=5)
        local, solved = drive(env, lambda step: executor.act(env.observe))
    with libero() as env, serving(policy, QUICK) as server, stock_client(openpi_python, server.url) as client:
        seen = [env.observe()]

        def act(step: int) -> np.ndarray:
            if step % 5 == 0:  # the broker looks at the observation only when its chunk is used up
                seen[0] = env.observe()
            return client.step(seen[0], depth=DEPTH, seed=seeds[step // 5])["action"]

        remote, remote_solved = drive(env, act)
    assert remote_solved == solved
    np.testing.assert_array_equal(np.stack(remote), np.stack(local))


def test_eight_clients_at_once_get_their_own_answers(policy: Policy) -> None:
    """In a batch sums are rounded differently; the answers agree to that, and nobody gets another's."""
    with libero() as env:
        seen = []
        for state in range(8):
            env.reset(InitState(state))
            seen.append(env.observe())
    stop = StopRule.fixed(DEPTH)
    alone = [policy.infer(each, Ask(stop, index)).actions for index, each in enumerate(seen)]
    answers: dict[int, np.ndarray] = {}
    sizes: list[float] = []
    with serving(policy, QUICK) as server:

        def ask(index: int) -> None:
            with RemotePolicy(server.url) as remote:
                for _ in range(5):
                    chunk = remote.infer(seen[index], Ask(stop, index))
                    answers[index] = chunk.actions

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sizes = [server.metrics.batch_size._sum.get()]
    assert sizes[0] >= 41
    for index, actions in answers.items():
        np.testing.assert_allclose(actions, alone[index], atol=1e-3)
    assert all(not np.allclose(alone[a], alone[b], atol=1e-3) for a, b in itertools.combinations(range(8), 2))


def test_watching_the_simulator_in_a_browser(policy: Policy, tmp_path: Path) -> None:
    feed, over = LiveFeed(simulator=True), threading.Event()
    config = QUICK.model_copy(update={"web": True})
    with serving(policy, config, live=feed) as server, browser_page(1440, 900) as page:

        def play() -> None:
            with libero(3) as env, RemotePolicy(server.url) as remote:
                executor = Executor(remote, Synchronous(5), Ask(StopRule("action_l2", max_depth=32)))
                starts = [InitState(0), InitState(1)]
                LiveLoop(env, executor, feed, starts=starts, rate_hz=20).run(None, is_over=over.is_set)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            page.goto(server.url.replace("ws", "http", 1))
            until(page, "Number(document.querySelector('#count').textContent) >= 5")
            assert page.evaluate("document.querySelector('#camera-wrist').naturalWidth") == 256
            page.locator("label", has_text="Depth").first.click()
            page.locator("#depth").fill("2")
            until(page, "document.querySelector('#iterations').textContent === '2'")
            page.locator("#words").fill("pick up the milk and place it in the basket")
            page.get_by_text("Say it").click()
            until(page, "document.querySelector('#instruction').textContent.includes('the milk')")
            page.get_by_text("New episode").click()
            until(page, "document.querySelector('#tally').textContent.startsWith('episode 2')")
            page.get_by_text("Pause").click()
            until(page, "document.querySelector('#status').textContent === 'paused'")
            page.screenshot(path=tmp_path / "play.png")
        finally:
            over.set()
            thread.join()
