"""Recordings of CALVIN: a good one; and damaged, incomplete or undrawable ones, of which nothing is simulated."""

import json

import numpy as np
import pytest

from calvin_files import ASSETS, GOLDEN, needs_calvin, needs_recordings
from rdvla.doctor import golden_calvin
from rdvla.doctor.calvin_replay import Replay, replay_recording
from rdvla.doctor.golden import run_golden
from rdvla.errors import ConfigError

STEPS = 6
FACTS = {
    "scene": "D",
    "renderer": "tiny",
    "steps": STEPS,
    "start_info_taken_at": [0],
    "solved_since_last_start_info": [[0, []], [4, ["open_drawer"]]],
}


def record(folder, name, **facts):
    rng = np.random.default_rng(0)
    arrays = {"actions": rng.normal(size=(STEPS, 7)), "rgb_static_0": np.zeros((4, 4, 3), np.uint8)}
    for key, size in (("robot_obs", 15), ("scene_obs", 24)):
        arrays[key] = rng.normal(size=(STEPS + 1, size))
        arrays[f"init_{key}"] = arrays[key][0]
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    (folder / f"{name}.json").write_text(json.dumps(FACTS | facts))


@pytest.fixture
def rollouts(tmp_path, monkeypatch):
    """A folder with one good recording; a replay gives what was recorded."""

    def faithful(work, arrays, facts, renderer, draw):
        solved = [[] if moment < 4 else ["open_drawer"] for moment in range(len(arrays["actions"]) + 1)]
        pictures = {key: arrays[key] for key in draw}
        return Replay(arrays["robot_obs"], arrays["scene_obs"], solved, pictures, renderer)

    monkeypatch.setattr(golden_calvin, "_alone", faithful)
    monkeypatch.setattr(golden_calvin, "_judge", lambda checks: checks)
    monkeypatch.setattr(golden_calvin, "choose_renderer", lambda: "tiny")
    folder = tmp_path / "rollouts"
    folder.mkdir()
    record(folder, "good")
    return folder


def run(rollouts):
    """Return, by case, (quantity, status) and the notes."""
    checks = [check for case in run_golden(rollouts.parent) for check in case]
    return {
        case: [(check.quantity, check.status, check.note) for check in checks if check.case == f"calvin/{case}"]
        for case in dict.fromkeys(check.case.removeprefix("calvin/") for check in checks)
    }


def test_a_good_recording_passes(rollouts):
    (found,) = run(rollouts).values()
    assert [quantity for quantity, status, _ in found if status == "pass"] == [
        "control steps",
        "robot state at every step",
        "scene state at every step",
        "tasks solved at every step",
        "1 pictures (tiny)",
    ]
    assert len(found) == 5


@pytest.mark.parametrize("size", [0, 4, 900])
def test_a_file_that_was_cut_fails_and_the_rest_runs(rollouts, size):
    record(rollouts, "cut")
    path = rollouts / "cut.npz"
    path.write_bytes(path.read_bytes()[:size])
    found = run(rollouts)
    ((quantity, status, note),) = found["cut"]
    assert (quantity, status) == ("could not be run", "fail")
    assert "cut.npz' cannot be read" in note
    assert {status for _, status, _ in found["good"]} == {"pass"}


def test_half_a_recording_is_not_passed_over(rollouts):
    for name, lost in (("a", "a.json"), ("b", "b.npz")):
        record(rollouts, name)
        (rollouts / lost).unlink()
    found = run(rollouts)
    assert found["a"][0][:2] == ("could not be run", "fail")
    assert "a.json' is missing" in found["a"][0][2]
    assert found["b"][0][:2] == ("not replayed", "warn")


def test_facts_that_do_not_fit_the_actions(rollouts):
    record(rollouts, "shorter", steps=STEPS + 1)
    record(rollouts, "longer", solved_since_last_start_info=[[0, []], [STEPS + 1, ["open_drawer"]]])
    found = run(rollouts)
    assert ("control steps", "fail", "6 instead of 7") in found["shorter"]
    assert found["longer"][0][:2] == ("could not be run", "fail")
    assert "of step 7, actions of 6" in found["longer"][0][2]


def test_pictures_of_a_renderer_that_is_not_here_are_left_out_and_the_states_compared(rollouts, monkeypatch):
    record(rollouts, "drawn", renderer="egl")
    checks = run(rollouts)["drawn"]
    found = {quantity: status for quantity, status, _ in checks}
    assert [note for quantity, _, note in checks if quantity == "pictures (egl)"] == [
        "RDVLA_CALVIN_RENDERER is tiny, or EGL does not draw here."
    ]
    assert found["pictures (egl)"] == "skip"
    assert found["robot state at every step"] == "pass"
    monkeypatch.setattr(golden_calvin, "choose_renderer", lambda: "egl")
    assert ("1 pictures (egl)", "pass") in [each[:2] for each in run(rollouts)["drawn"]]


@pytest.mark.sim
@needs_calvin
@needs_recordings
def test_a_recording_of_the_published_simulator(tmp_path, monkeypatch):
    monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))
    (tmp_path / "rollouts").mkdir()
    for name in ("C_mixed.json", "C_mixed.npz"):
        (tmp_path / "rollouts" / name).symlink_to(GOLDEN / "rollouts" / name)
    (checks,) = run_golden(tmp_path)
    assert [check.status for check in checks] == ["pass"] * 5
    assert {check.limit for check in checks} == {0.0}


def test_tasks_are_counted_from_the_first_moment(rollouts):
    with pytest.raises(ConfigError, match=r"start_info_taken_at = \[3\]"):
        replay_recording({}, FACTS | {"start_info_taken_at": [3]}, "tiny", [])
