"""The LIBERO expert: what it does in which order, and that it solves tasks in the simulator."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rdvla.collect.demonstrators import make_demonstrator
from rdvla.envs.base import Seed, TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts import make_expert
from rdvla.experts.base import NoPlanError
from rdvla.experts.libero import expert as libero
from rdvla.experts.libero.boxes import Boxes
from rdvla.experts.libero.pick_and_place import Phase, PickAndPlace
from rdvla.experts.libero.push import PRESS, Slide
from rdvla.experts.libero.scene import Goal


class FakeScene:
    """Goals that hold once they are in `done`."""

    goals = (Goal("in", ("bowl", "basket")), Goal("on", ("cup", "tray")))

    elbow = -2.0

    def __init__(self, _: object = None) -> None:
        self.done: set[Goal] = set()

    def holds(self, goal: Goal) -> bool:
        return goal in self.done

    def is_region(self, name: str) -> bool:
        return False

    def door(self, place: str) -> None:
        return None


class FakeSkill:
    """Takes two steps to make its goal true; the first `stuck` starts find no way."""

    precise = True
    stuck = 0

    def __init__(self, scene: FakeScene, goal: Goal) -> None:
        self._scene, self._goal, self.steps = scene, goal, 0

    def start(self) -> None:
        if type(self).stuck > 0:
            type(self).stuck -= 1
            raise NoPlanError("no grasp")
        self.steps = 0

    def act(self) -> np.ndarray | None:
        self.steps += 1
        if self.steps < 3:
            return np.ones(7, dtype=np.float32)
        self._scene.done.add(self._goal)
        return None


@pytest.fixture
def expert(monkeypatch: pytest.MonkeyPatch) -> libero.LiberoExpert:
    monkeypatch.setattr(libero, "LiberoScene", FakeScene)
    monkeypatch.setattr(libero, "SKILLS", dict.fromkeys(("in", "on"), FakeSkill))
    monkeypatch.setattr(FakeSkill, "stuck", 0)
    return libero.LiberoExpert()


ENV = SimpleNamespace(unwrapped=None)


def test_goals_are_reached_in_order(expert: libero.LiberoExpert) -> None:
    expert.reset(ENV)
    worked_on = []
    for _ in range(4):
        expert.act(ENV)
        worked_on.append(expert.skill._goal)  # type: ignore[union-attr]
    first, second = FakeScene.goals
    assert worked_on == [first, first, second, second]


def test_without_a_plan_it_stands_still_and_looks_again(expert: libero.LiberoExpert) -> None:
    FakeSkill.stuck = 3
    expert.reset(ENV)
    actions = [expert.act(ENV) for _ in range(3)]
    assert [action.tolist() for action in actions[:2]] == [[0, 0, 0, 0, 0, 0, -1]] * 2
    assert not np.array_equal(actions[2], actions[0])


def test_an_unknown_predicate_is_named(expert: libero.LiberoExpert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeScene, "goals", (Goal("up", ("drawer",)),))
    with pytest.raises(ConfigError, match="'up'"):
        expert.reset(ENV)


def disc(center: tuple[float, float, float], size: float, height: float) -> Boxes:
    return Boxes(np.array([center]), np.eye(3)[None], np.array([[size, size, height]]) / 2)


PARENTS = {"place": None, "shelf": "cabinet"}


class TableScene:
    """A plate at the origin, its goal half a metre to the left, and a box on the straight way."""

    problem = None

    def __init__(self, height: float = 0.02) -> None:
        self._plate = disc((0.0, 0.0, 0.01), 0.14, height)

    def boxes(self, name: str) -> Boxes:
        return self._plate

    def is_region(self, name: str) -> bool:
        return name in PARENTS

    def parent(self, name: str) -> str | None:
        return PARENTS[name]

    def position(self, name: str) -> np.ndarray:
        return np.array([0.0, 0.0, 0.0]) if name == "plate" else np.array([-0.3, 0.5, 0.0])


@pytest.mark.parametrize(
    ("height", "target", "slides"),
    [(0.02, "place", True), (0.06, "place", False), (0.02, "shelf", False), (0.02, "bowl", False)],
)
def test_only_flat_things_are_slid_and_only_on_the_table(height: float, target: str, slides: bool) -> None:
    assert Slide.suits(TableScene(height), Goal("on", ("plate", target))) is slides  # type: ignore[arg-type]


def test_a_rim_is_pressed_down_while_it_is_taken() -> None:
    skill = Slide(TableScene(), Goal("on", ("plate", "place")))  # type: ignore[arg-type]
    skill._hold = np.array([0.07, 0.0, 0.02])
    skill._route = [np.array([-0.3, 0.5])]
    skill._enter(Phase.CLOSE)
    assert skill._target(skill._hold)[0].tolist() == pytest.approx([0.07, 0.0, 0.02 - PRESS])
    skill._enter(Phase.CARRY)
    assert skill._target(skill._hold)[0].tolist() == pytest.approx([-0.3, 0.5, 0.02])


def test_a_plate_that_comes_to_rest_above_its_place_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    skill = Slide(SimpleNamespace(gripper_opening=0.01), Goal("on", ("plate", "place")))  # type: ignore[arg-type]
    monkeypatch.setattr(skill, "_lost", lambda position: False)
    skill._release = np.array([0.0, 0.0, 0.02])
    skill._enter(Phase.LOWER)
    for _ in range(20):
        skill._steps += 1
        skill._advance(np.array([0.0, 0.0, 0.028]))
        skill._last_height = 0.028
    assert skill.phase is Phase.OPEN


def test_what_is_caught_on_a_rim_is_lifted_again_before_it_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SimpleNamespace(gripper_opening=0.01)
    skill = PickAndPlace(scene, Goal("in", ("bowl", "drawer")))  # type: ignore[arg-type]
    aims: list[float] = []
    monkeypatch.setattr(skill, "_lost", lambda position: False)
    monkeypatch.setattr(skill, "_stuck", lambda position: True)
    monkeypatch.setattr(skill, "_aim", lambda position: aims.append(position[2]))
    skill._release = np.array([0.0, 0.0, 0.1])
    phases = []
    for height in (0.2, 0.19, 0.18, 0.11):
        skill._enter(Phase.LOWER)
        skill._advance(np.array([0.0, 0.0, height]))
        phases.append(skill.phase)
    assert phases == [Phase.CARRY, Phase.CARRY, Phase.OPEN, Phase.OPEN], "twice, then it is let go where it is"
    assert aims == [0.2, 0.19]


@pytest.mark.parametrize(
    ("obstacle", "corners"),
    [((0.3, 0.2), []), ((-0.15, 0.25), [[0.0, 0.5]]), ((-0.03, 0.2), [[-0.3, 0.0]])],
)
def test_a_slid_object_passes_what_stands_in_its_way(obstacle: tuple[float, float], corners: list[list[float]]) -> None:
    skill = Slide(TableScene(), Goal("on", ("plate", "place")))  # type: ignore[arg-type]
    skill._obstacles = disc((*obstacle, 0.02), 0.04, 0.04).points()
    skill._place = SimpleNamespace(xy=np.array([-0.3, 0.5]))  # type: ignore[assignment]
    assert np.array(skill._waypoints()).tolist() == [*corners, [-0.3, 0.5]]


def solve(env: object, task: TaskSpec, seed: int) -> int | None:
    expert = make_demonstrator(task)
    env.reset(Seed(seed))  # type: ignore[attr-defined]
    expert.reset(env, seed=seed)
    return next((n for n in range(1, task.max_steps) if env.step(expert.act(env).executed)), None)  # type: ignore[attr-defined]


def play_until(env: Any, expert: libero.LiberoExpert, phase: Phase) -> None:
    for _ in range(env.task.max_steps):
        if isinstance(expert.skill, PickAndPlace) and expert.skill.phase == phase:
            return
        env.step(expert.act(env))
    pytest.fail(f"the expert never came to {phase}")


def hand_over(env: Any, seed: int) -> list[float]:
    """Let an expert carry the object, and a new one finish the task; return what the new one does with the gripper."""
    env.reset(Seed(seed))
    first, second = libero.LiberoExpert(), libero.LiberoExpert()
    first.reset(env)
    play_until(env, first, Phase.CLOSE)
    second.reset(env)
    assert isinstance(second.skill, PickAndPlace)
    assert second.skill.phase == Phase.DESCEND
    play_until(env, first, Phase.CARRY)
    second.reset(env)
    grips, solved = [], False
    while not solved and len(grips) < env.task.max_steps:
        action = second.act(env)
        grips.append(float(action[-1]))
        solved = env.step(action)
    assert solved
    return grips


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task_id"), [("libero_object", 6), ("libero_spatial", 5)])
def test_it_picks_and_places(suite: str, task_id: int) -> None:
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from rdvla.envs.libero.env import LiberoEnv

    with LiberoEnv(suite, task_id, camera_size=64) as env:
        steps = solve(env, env.task, seed=7)
        grips = hand_over(env, seed=8)
    assert steps is not None
    assert 40 < steps < 160
    closed = grips.index(-1.0)
    assert closed > 10
    assert set(grips[closed:]) == {-1.0}


@pytest.mark.sim
@pytest.mark.slow
def test_it_opens_a_drawer_turns_a_knob_and_slides_a_plate() -> None:
    """All tasks of libero_goal have the same scene, so one simulator plays the goals of several."""
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from rdvla.envs.libero.env import LiberoEnv

    others = [["turnon", "flat_stove_1"], ["on", "plate_1", "main_table_stove_front_region"]]
    with LiberoEnv("libero_goal", 0, camera_size=64) as env:
        steps = [solve(env, env.task, seed=7)]
        for goal in others:
            env.unwrapped.parsed_problem["goal_state"] = [goal]
            steps.append(solve(env, env.task, seed=7))
    assert all(count is not None and 40 < count < 160 for count in steps), steps


@pytest.mark.sim
@pytest.mark.slow
def test_it_puts_a_mug_under_a_roof_and_shuts_the_door() -> None:
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from rdvla.envs.libero.env import LiberoEnv

    with LiberoEnv("libero_10", 9, camera_size=64) as env:
        steps = solve(env, env.task, seed=5000)
    assert steps is not None
    assert 100 < steps < 400


def test_a_suite_without_experts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no expert for the tasks of libero_object_swap; .* for libero_object, "):
        make_expert(TaskSpec("libero_object_swap", 0, "put_it", "put it there", 300))
