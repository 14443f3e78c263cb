"""The experts for CALVIN, in the simulator, without a picture."""

import numpy as np
import pytest

from calvin_files import ASSETS, needs_calvin
from rdvla.collect.noise import NoisyExpert
from rdvla.collect.recording import Attempt, play
from rdvla.envs import InitState, Seed, find_suite
from rdvla.envs.episode import turns
from rdvla.experts import make_expert
from rdvla.experts.calvin.grasping import has_room
from rdvla.experts.calvin.hand import OPEN, Hand, lean, pointing
from rdvla.experts.calvin.table import PlayTable

pytestmark = needs_calvin


@pytest.fixture
def calvin_files(monkeypatch):
    monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))
    monkeypatch.setenv("RDVLA_CALVIN_RENDERER", "tiny")


@pytest.fixture
def env(calvin_files):
    with find_suite("calvin_d").make_env(0) as made:
        yield made


def solve(env, start, stages):
    """Play the first `stages` stages; return the names of those solved."""
    env.reset(start)
    expert = make_expert(env.task)
    expert.reset(env)
    solved = []
    for turn in turns(env):
        action = expert.act(env)
        assert np.abs(action).max() <= 1
        assert abs(action[-1]) == 1
        if turn.execute(action):
            solved.append(turn.stage.name)
        if len(solved) == stages:
            break
    return solved


def test_whole_chain_turn_slide_lift_place_and_switch(env):
    chain = ["rotate_blue_block_right", "move_slider_right", "lift_red_block_slider", "place_in_slider"]
    assert solve(env, InitState(0), 5) == [*chain, "turn_off_lightbulb"]


@pytest.mark.parametrize(
    ("chain", "tasks"),
    [
        (4, ["open_drawer"]),
        (55, ["close_drawer"]),
        (12, ["move_slider_left"]),
        (13, ["turn_on_led"]),
        (18, ["turn_on_lightbulb"]),
        (9, ["push_red_block_left"]),
        (83, ["push_into_drawer"]),
        (29, ["lift_red_block_table", "stack_block", "unstack_block"]),
        (30, ["lift_blue_block_table", "place_in_drawer"]),
    ],
)
def test_first_tasks_of_a_chain(env, chain, tasks):
    assert solve(env, InitState(chain), len(tasks)) == tasks


@pytest.mark.parametrize(
    ("seed", "tasks"),
    [
        (5039, ["push_red_block_left", "push_into_drawer"]),
        (5198, ["rotate_red_block_right", "push_into_drawer"]),
    ],
)
def test_a_block_is_left_alone_before_it_is_to_be_pushed_into_the_drawer(env, seed, tasks):
    """Otherwise that cannot be solved: at its start, nothing but the table may touch the block."""
    assert solve(env, Seed(seed), len(tasks)) == tasks


@pytest.mark.parametrize(
    ("seed", "tasks"),
    [
        (20167, ["push_red_block_right", "push_into_drawer"]),
        (30267, ["move_slider_right", "push_into_drawer"]),
    ],
)
def test_a_long_block_is_pushed_into_the_drawer(calvin_files, seed, tasks):
    """A leaning one pressed it into the table, where it stuck; and one that was not grasped was tipped by dragging."""
    with find_suite("calvin_c").make_env(0) as env:
        assert solve(env, Seed(seed), len(tasks)) == tasks


def test_an_unstacked_block_is_on_the_table(env):
    """In the air, it could not be pushed next."""
    chain = InitState(96)
    env.reset(chain)
    tasks = [stage.name for stage in env.stages]
    assert tasks[3] == "unstack_block"
    assert solve(env, chain, 5) == tasks


def test_a_hand_that_leans_reaches_the_far_end_of_the_table(env):
    chain = ["push_pink_block_right", "turn_on_lightbulb", "push_into_drawer"]
    assert solve(env, Seed(5001), 3) == chain


def test_a_finger_comes_down_beside_the_next_block_rather_than_on_it(env):
    """It would push that into the table, where nothing can be stacked on it."""
    chain = ["turn_on_lightbulb", "move_slider_left", "push_blue_block_right", "lift_blue_block_table", "stack_block"]
    assert solve(env, InitState(60), 5) == chain


def test_a_hand_near_the_back_wall_leans_towards_it(env):
    env.reset(InitState(0))
    table = PlayTable(env)
    assert lean(table, np.array([0.1, -0.12, 0.46])) == (0, 0)
    x, y = lean(table, np.array([0.1, -0.04, 0.46]))
    assert y == pytest.approx(0.3, abs=0.01)
    assert abs(x) < 0.05


@pytest.mark.parametrize("yaw", [0.3, 1.5, 2.7])
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.35), (0.35, 0.0)])
def test_fingers_point_where_they_are_told_however_the_hand_is_turned(env, yaw, x, y):
    env.reset(InitState(0))
    table = PlayTable(env)
    tilt, roll = pointing(x, y, yaw)
    for move in Hand(table, OPEN).go([0.05, -0.2, 0.6], yaw=yaw, tilt=tilt, roll=roll):
        env.step(move.action)
    client = env.simulation.client
    turned = np.array(client.getMatrixFromQuaternion(client.getQuaternionFromEuler(table.euler))).reshape(3, 3)
    assert turned[:, 2] == pytest.approx([np.sin(x), np.sin(y), -np.cos(x + y)], abs=0.09)


@pytest.mark.parametrize(
    ("scene", "seed", "tasks"),
    [
        ("c", 20117, ["lift_blue_block_slider"]),  # it lies along the wall: the fingers close towards that
        ("a", 20848, ["rotate_blue_block_left", "push_into_drawer", "lift_blue_block_drawer"]),  # below the edge
        ("a", 20267, ["push_red_block_left"]),  # the button is in the way
        ("d", 42341, ["push_blue_block_right", "push_into_drawer", "lift_blue_block_drawer"]),  # the drawer's front
        ("c", 41142, ["rotate_blue_block_right", "push_into_drawer", "lift_blue_block_drawer"]),
    ],
)
def test_what_is_beside_a_block(calvin_files, scene, seed, tasks):
    with find_suite(f"calvin_{scene}").make_env(0) as env:
        assert solve(env, Seed(seed), len(tasks)) == tasks


def test_what_may_be_pushed_into_the_drawer_touched_nothing_but_the_table(calvin_files):
    with find_suite("calvin_d_single").make_env(18) as env:  # lift_blue_block_table
        for seed in range(20):
            env.reset(Seed(seed))
            for _ in range(10):
                env.simulation.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))  # blocks settle
            blocks = PlayTable(env).blocks
            if blocks["block_red"].position[1] < 0:
                break
        assert solve(env, Seed(seed), 1) == ["lift_blue_block_table"]
        assert PlayTable(env).untouched == {"block_red"}


def test_a_drawer_is_opened_further_where_the_fingers_have_no_room(calvin_files):
    chain = ["open_drawer", "rotate_pink_block_left", "push_into_drawer", "move_slider_left", "lift_pink_block_drawer"]
    with find_suite("calvin_d").make_env(0) as env:
        assert solve(env, Seed(41425), 4) == chain[:4]
        table = PlayTable(env)
        assert not has_room(table, table.blocks["block_pink"])
        before = table.drawer_way
        assert solve(env, Seed(41425), 5) == chain
        assert PlayTable(env).drawer_way < before - 0.03


def test_a_hand_that_is_held_up_is_not_commanded_far_ahead(env):
    env.reset(InitState(0))
    table = PlayTable(env)
    x, y, _ = table.hand
    ahead = 0.0
    for move in Hand(table, OPEN).go([x, y, 0.0]):
        env.step(move.action)
        ahead = max(ahead, float(np.linalg.norm(table.commanded[0] - table.hand)))
    assert table.hand[2] > 0.4  # on the table
    assert 0.08 < ahead < 0.12


def test_a_demonstration_has_a_part_for_every_solved_stage(env):
    attempt = Attempt("calvin_d", 0, 1, 0)
    recorded = play(env, NoisyExpert(make_expert(env.task)), attempt, render_every=50).demonstration
    assert recorded is not None
    assert [part.name for part in recorded.parts] == [stage.name for stage in env.stages[: len(recorded.parts)]]
    assert sum(part.length for part in recorded.parts) == recorded.length
    begins = np.cumsum([0, *(part.length for part in recorded.parts[:-1])])
    assert recorded.fresh[begins].all()
    assert {name: images[0].shape for name, images in recorded.decoded_images().items()} == {
        "primary": (200, 200, 3),
        "wrist": (84, 84, 3),
    }
