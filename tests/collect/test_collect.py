import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import collect_fakes as fakes
import numpy as np
import pytest

import chain_fakes
from patience import eventually
from rdvla.collect.collection import CollectConfig, _summarise, collect
from rdvla.collect.plan import TaskPlan
from rdvla.collect.recording import Attempt, Demonstration, play
from rdvla.collect.staging import Staging
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.envs import Seed
from rdvla.envs.toy import ToyEnv
from rdvla.errors import CheckpointError, ConfigError, DatasetError, SimulatorError, StorageError
from rdvla.files import write_atomically, writing
from rdvla.jobs import driver


def config(output, **changes):
    settings = {"suites": ("toy",), "task_ids": (0, 4), "episodes": 3, "workers": 2, "camera_size": 32}
    return CollectConfig(output, **(settings | {"storage": "image", "render_every": 3} | changes))


def run(output, env=ToyEnv, on_status=lambda _: None, **changes):
    suites = {"toy": fakes.FakeSuite("toy", env=env)}
    return collect(config(output, **changes), suites=suites, make_expert=fakes.make_demonstrator, on_status=on_status)


def load(output, tmp_path):
    return LeRobotDataset.open(output, chunk_size=4, cache_dir=tmp_path / "cache")


def content(output, tmp_path):
    """Everything that was recorded, without timings."""
    dataset = load(output, tmp_path)
    batch = dataset.batch(range(len(dataset)))
    episodes = json.loads((output / "collect.json").read_text())["episodes"]
    origin = [(e["suite"], e["task_id"], e["attempt"]) for e in episodes]
    return origin, batch


def assert_same(one, other):
    assert one[0] == other[0]
    for name in ("state", "actions", "episode_index", "frame_index"):
        np.testing.assert_array_equal(getattr(one[1], name), getattr(other[1], name))
    for camera, images in one[1].images.items():
        np.testing.assert_array_equal(images, other[1].images[camera])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The dataset that every other way of collecting it has to equal."""
    folder = tmp_path_factory.mktemp("reference")
    summary = run(folder / "d", workers=1)
    return folder / "d", summary


@pytest.mark.parametrize(("needed", "lengths"), [(3, [3, 3, 3]), (4, [4]), (6, None)])
def test_every_solved_stage_is_a_part_that_begins_with_a_picture(needed, lengths):
    env = chain_fakes.ChainEnv()
    env.reset = lambda start: chain_fakes.ChainEnv.reset(env, Seed(needed))
    recorded = play(env, fakes.Pusher(), Attempt("chain", 0, 0, 0), render_every=2).demonstration
    if lengths is None:
        assert recorded is None
        return
    assert [part.length for part in recorded.parts] == lengths
    assert [part.instruction for part in recorded.parts] == ["do one", "do two", "do three"][: len(lengths)]
    assert recorded.fresh.tolist() == [row % 2 == 0 for length in lengths for row in range(length)]
    shown = [image[0, 0, 0] for image in recorded.decoded_images()["primary"]]
    assert shown == np.arange(recorded.length)[recorded.fresh].tolist()
    assert Demonstration.from_bytes(recorded.to_bytes(), "x").parts == recorded.parts


def test_a_chain_is_written_stage_by_stage(tmp_path):
    settings = CollectConfig(tmp_path / "d", ("chain",), episodes=2, workers=1, render_every=2, storage="image")
    summary = collect(settings, suites={"chain": fakes.ThreesSuite("chain")}, make_expert=fakes.make_pusher)
    assert (summary.missing, summary.tasks[0].episodes) == (0, 6)
    assert "| chain | 0 | do two | 2 | 3 |" in (tmp_path / "d" / "README.md").read_text()
    dataset = load(tmp_path / "d", tmp_path)
    assert sorted(dataset.instructions) == ["do one", "do three", "do two"]


def test_the_time_of_a_chain_counts_once():
    task = fakes.ThreesSuite("chain").tasks()[0]
    plan, staging = TaskPlan(("chain", 0), 2, 0, {}), SimpleNamespace(errors=Counter())
    rows = [{"suite": "chain", "task_id": 0, "attempt": n, "length": 2, "seconds": 6.0 * (n + 1)} for n in (0, 0, 0, 1)]
    assert _summarise(task, plan, staging, rows).seconds_per_episode == 4.5


@pytest.mark.parametrize(("task_ids", "collected"), [(None, [1, 4]), ((3, 0), [0, 3])])
def test_a_suite_says_which_tasks_are_collected_unless_they_are_named(tmp_path, task_ids, collected):
    suites = {"toy": fakes.ChosenSuite("toy")}
    settings = config(tmp_path / "d", task_ids=task_ids, episodes=1, workers=1)
    summary = collect(settings, suites=suites, make_expert=fakes.make_demonstrator, on_status=lambda _: None)
    assert [task.task_id for task in summary.tasks] == collected


def test_play_records_clean_actions_and_renders_rarely():
    env = ToyEnv(3, camera_size=32)
    played = play(env, fakes.ToyDemonstrator(), Attempt("toy", 3, 1, 0), render_every=4)
    recorded = played.demonstration
    assert recorded is not None
    assert env.num_renders == 2 * -(-recorded.length // 4)
    assert recorded.fresh.tolist() == [row % 4 == 0 for row in range(recorded.length)]
    assert recorded.image_index.tolist() == [row // 4 for row in range(recorded.length)]
    replay = ToyEnv(3, camera_size=32)
    placement, noise = recorded.attempt.seeds()
    replay.reset(Seed(placement))
    expert = fakes.ToyDemonstrator()
    expert.reset(replay, seed=noise)
    images = recorded.decoded_images()["primary"]
    disturbed = False
    for row in range(recorded.length):
        np.testing.assert_array_equal(recorded.states[row], replay.state())
        if recorded.fresh[row]:
            np.testing.assert_array_equal(images[recorded.image_index[row]], replay.frame("primary"))
        step = expert.act(replay)
        np.testing.assert_array_equal(recorded.actions[row], step.clean)
        disturbed |= not np.array_equal(step.clean, step.executed)
        solved = replay.step(step.executed)
    assert disturbed
    assert solved


def test_staged_file_round_trip():
    recorded = play(ToyEnv(0), fakes.ToyDemonstrator(), Attempt("toy", 0, 0, 0), render_every=2).demonstration
    loaded = Demonstration.from_bytes(recorded.to_bytes(), "x")
    assert (loaded.attempt, loaded.images, loaded.seconds) == (recorded.attempt, recorded.images, recorded.seconds)
    for name in ("states", "actions", "image_index", "fresh"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(recorded, name))


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (None, 0),
        (None, -200),
        ({}, None),
        ({"attempt": {"suite": "toy"}, "parts": []}, None),
        ({"attempt": {}, "parts": [{"name": "x"}]}, None),
        (b"{", None),
    ],
    ids=["empty", "cut short", "no head", "half an attempt", "half a part", "no JSON"],
)
def test_a_damaged_staged_file_is_named(head, size):
    recorded = play(ToyEnv(0), fakes.ToyDemonstrator(), Attempt("toy", 0, 0, 0), render_every=2).demonstration
    content = recorded.to_bytes()[:size]
    if head is not None:
        with np.load(io.BytesIO(content)) as arrays:
            parts = dict(arrays)
        said = head if isinstance(head, bytes) else json.dumps(head).encode()
        buffer = io.BytesIO()
        np.savez(buffer, **(parts | {"head": np.frombuffer(said, dtype=np.uint8)}))
        content = buffer.getvalue()
    with pytest.raises(DatasetError, match=r"'00000\.npz' is damaged"):
        Demonstration.from_bytes(content, "00000.npz")


def test_every_picture_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    original = Demonstration.decoded_images
    monkeypatch.setattr(Demonstration, "decoded_images", lambda self: decoded.append(self.attempt) or original(self))
    run(tmp_path / "d", task_ids=(0,), episodes=2, workers=1)
    assert len(decoded) == len(set(decoded)) == 2


def test_dataset_of_the_toy(reference, tmp_path):
    output, summary = reference
    dataset = load(output, tmp_path)
    assert len(dataset.episodes) == 6
    assert dataset.instructions == ("pick up the green square", "reach the red square")
    assert summary.missing == 0
    assert [task.episodes for task in summary.tasks] == [3, 3]
    assert not (output / ".staging").exists()
    card = (output / "README.md").read_text()
    assert "rendered at every 3. control step only" in card
    assert "| `observation.images.image` | camera primary, upright |" in card
    frames = dataset.batch(range(len(dataset))).frame_index
    assert set(frames % 3) == {0}
    placements = {tuple(dataset.source.columns["action"][dataset.source.rows(e)][0]) for e in dataset.episodes}
    assert len(placements) > 1


def test_failed_attempts_are_dropped_and_counted(tmp_path):
    summary = run(tmp_path / "d", task_ids=(0,), episodes=12)
    seeds = [Attempt("toy", 0, number, 0).seeds()[1] for number in range(40)]
    lazy = [number for number, seed in enumerate(seeds) if seed % 5 == 0]
    origin, _ = content(tmp_path / "d", tmp_path)
    kept = [number for _, _, number in origin]
    assert kept == [number for number in range(40) if number not in lazy][:12]
    assert summary.tasks[0].failures == sum(number < kept[-1] for number in lazy)
    assert summary.tasks[0].failures > 0


def test_number_of_workers_changes_nothing(reference, tmp_path):
    run(tmp_path / "d", workers=3)
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_a_finished_collection_is_left_alone(reference):
    output, summary = reference
    before = (output / "meta/info.json").stat().st_mtime_ns
    assert run(output, workers=1, env=fakes.make_broken) == summary
    assert (output / "meta/info.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other settings"):
        run(output, episodes=4)


def test_kept_staging_can_be_extended(reference, tmp_path):
    run(tmp_path / "d", episodes=1, keep_staging=True)
    with pytest.raises(ConfigError, match="seed = 0, now it is 1"):
        run(tmp_path / "d", seed=1)
    with pytest.raises(ConfigError, match="takeover = None, now it is 'checkpoint 1'"):
        run(tmp_path / "d", takeover="checkpoint 1")
    run(tmp_path / "d")
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_what_is_drawn_otherwise_is_not_mixed(reference, tmp_path):
    run(tmp_path / "d", episodes=1, keep_staging=True)
    staged = sorted((tmp_path / "d/.staging").rglob("*.npz"))
    with pytest.raises(ConfigError, match=r"demonstrations of toy .*renderer was None, is 'egl'.* another --output"):
        run(tmp_path / "d", env=fakes.Redrawn)
    assert sorted((tmp_path / "d/.staging").rglob("*.npz")) == staged
    run(tmp_path / "d")
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_machines_of_one_collection_have_graphics_cards_of_their_own(tmp_path):
    run(tmp_path / "d", episodes=1, keep_staging=True)
    staged = list((tmp_path / "d/.staging").rglob("*.npz"))
    run(tmp_path / "d", env=fakes.OtherCard, episodes=2, keep_staging=True)
    assert len(list((tmp_path / "d/.staging").rglob("*.npz"))) > len(staged)


def test_a_dataset_does_not_shrink(tmp_path):
    run(tmp_path / "d", episodes=2, keep_staging=True)
    before = content(tmp_path / "d", tmp_path)
    with pytest.raises(ConfigError, match="holds 2 demonstrations per task, and fewer are asked for now"):
        run(tmp_path / "d", episodes=1, keep_staging=True)
    with pytest.raises(ConfigError, match=r"holds the tasks .* and fewer are asked for now"):
        run(tmp_path / "d", episodes=2, task_ids=(0,), keep_staging=True)
    assert_same(content(tmp_path / "d", tmp_path), before)


def test_a_dying_and_a_raising_simulator_are_errors_not_failures(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("RDVLA_TEST_BREAK", str(tmp_path))
    (tmp_path / "kill").touch()
    (tmp_path / "raise").touch()
    summary = run(tmp_path / "d", env=fakes.Breaking)
    assert sum(task.errors for task in summary.tasks) == 2
    assert [task.failures for task in summary.tasks] == [task.failures for task in reference[1].tasks]
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_a_hung_simulator_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(driver, "MAX_LOST_IN_A_ROW", 1)
    with pytest.raises(SimulatorError, match=r"still running after 0\.5 s"):
        run(tmp_path / "d", env=fakes.Hanging, workers=1, episode_timeout_s=0.5)


def test_a_simulator_that_never_starts_stops_the_run(tmp_path):
    with pytest.raises(SimulatorError, match="no GL library"):
        run(tmp_path / "d", env=fakes.make_broken)
    assert not (tmp_path / "d/meta").exists()


class UnpreparedSuite(fakes.FakeSuite):
    def prepare(self):
        raise SimulatorError("no renderer")


def test_a_suite_settles_what_its_workers_inherit_before_they_start(tmp_path):
    with pytest.raises(SimulatorError, match="no renderer"):
        collect(config(tmp_path / "d"), suites={"toy": UnpreparedSuite("toy")}, make_expert=fakes.make_demonstrator)


KILLED = """
import sys
sys.path[:0] = {path!r}
import chain_fakes
import collect_fakes as fakes
from functools import partial
from test_collect import run
from pathlib import Path
if __name__ == "__main__":
    output, staged = Path(sys.argv[1]), int(sys.argv[2])
    run(output, env=partial(fakes.HeldToy, output, staged))
"""


@pytest.mark.parametrize(("staged", "with_workers"), [(1, True), (3, False), (4, True)])
def test_kill_and_restart(reference, tmp_path, staged, with_workers):
    script = tmp_path / "script.py"
    script.write_text(KILLED.format(path=[str(folder) for folder in Path(__file__).parents[:2]]))
    command = [sys.executable, str(script), str(tmp_path / "d"), str(staged)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            eventually(lambda: process.poll() is not None or len(list((tmp_path / "d").rglob("*.npz"))) >= staged)
        finally:
            (os.killpg if with_workers else os.kill)(process.pid, signal.SIGKILL)
    assert not (tmp_path / "d/meta/info.json").exists()
    before = list((tmp_path / "d").rglob("*.npz"))
    assert len(before) >= staged
    seen = []
    run(tmp_path / "d", on_status=seen.append)
    assert seen[0].done == len(before)
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_a_kill_while_writing(reference, tmp_path, monkeypatch):
    run(tmp_path / "d", keep_staging=True)
    for half in ("meta", "README.md", "collect.json"):
        (tmp_path / "d" / half).rename(tmp_path / half)  # the state between two renames
    (tmp_path / "d/.writing/data").mkdir(parents=True)
    run(tmp_path / "d", env=fakes.make_broken)
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_demonstrations_of_both_kinds_are_not_mixed(tmp_path):
    run(tmp_path / "d", task_ids=(0,), episodes=1, takeover="checkpoint 1", keep_staging=True)
    with pytest.raises(ConfigError, match="takeover = 'checkpoint 1', now it is None"):
        run(tmp_path / "d", task_ids=(0,), episodes=1)


def test_where_nothing_was_settled_nothing_is_left(tmp_path):
    with pytest.raises(CheckpointError, match="damaged"):
        collect(config(tmp_path / "d"), suites={"toy": fakes.FakeSuite("toy")}, make_expert=fakes.make_unloadable)
    assert not (tmp_path / "d").exists()


def test_errors_are_counted_by_task_whatever_their_messages_say(tmp_path):
    staging = Staging(tmp_path)
    quoted = '{"suite": "toy", "task_id": 0, "attempt": 1}'
    with staging.locked():
        for task_id, message in ((0, "broke"), (1, quoted), (0, "broke again")):
            staging.add_error(Attempt("toy", task_id, 0, 0), message)
        staging.settle(Attempt("toy", 0, 0, 0), "failed", {})
    with Staging(tmp_path).locked():
        pass
    again = Staging(tmp_path)
    with again.locked():
        assert again.errors == staging.errors == {("toy", 0): 2, ("toy", 1): 1}
    with (tmp_path / ".staging/errors.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(DatasetError, match=r"errors.jsonl:4 is damaged"), Staging(tmp_path).locked():
        pass


@pytest.mark.parametrize("content", ["", "[3]", '{"seed": 0'])
def test_damaged_settings_of_a_collection_are_named(tmp_path, content):
    staging = Staging(tmp_path)
    with staging.locked():
        (staging.folder / "settings.json").write_text(content)
        with pytest.raises(ConfigError, match=r"settings\.json' is damaged"):
            staging.bind({"seed": 0})


def test_the_usual_size_may_be_said_or_left_out(tmp_path):
    """An earlier version wrote it down where none was given."""
    staging = Staging(tmp_path)
    with staging.locked():
        staging.bind({"camera_size": 64}, {"camera_size": 64})
        staging.bind({"camera_size": None}, {"camera_size": 64})
        for default in (256, None):
            with pytest.raises(ConfigError, match="camera_size = 64, now it is None"):
                staging.bind({"camera_size": None}, {"camera_size": default})
        with pytest.raises(ConfigError, match="camera_size = 64, now it is 32"):
            staging.bind({"camera_size": 32}, {"camera_size": 64})


def test_a_finished_collection_may_say_the_usual_size_too(tmp_path):
    run(tmp_path / "d", task_ids=(0,), episodes=1, camera_size=64)
    before = (tmp_path / "d" / "collect.json").read_text()
    run(tmp_path / "d", task_ids=(0,), episodes=1, camera_size=None)
    assert (tmp_path / "d" / "collect.json").read_text() == before
    with pytest.raises(ConfigError, match="with other settings"):
        run(tmp_path / "d", task_ids=(0,), episodes=1, camera_size=32)


def test_two_runs_in_one_folder(tmp_path):
    with Staging(tmp_path).locked(), pytest.raises(ConfigError, match="another `rdvla collect`"):
        run(tmp_path)


def test_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(StorageError, match="disk is full"):
        fill(Path("/dev/full"))


def fill(path):
    with writing(path), path.open("wb", buffering=0) as stream:
        stream.write(b"x")


def test_no_permission_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        write_atomically(tmp_path / "file" / "below", b"x")
    with pytest.raises(StorageError):
        run(tmp_path / "file" / "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ()}, "suite"),
        ({"task_ids": (99,)}, "no task 99"),
        ({"episodes": 0}, "episodes"),
        ({"render_every": 0}, "render_every"),
        ({"storage": "video", "camera_size": 33}, "even"),
        ({"storage": "jpeg"}, "storage"),
        ({"seed": -1}, "seed"),
        ({"episode_timeout_s": 0.0}, "episode_timeout_s"),
    ],
)
def test_wrong_arguments(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "d", **changes)
    assert not (tmp_path / "d").exists()


def test_attempts_are_taken_in_order_and_broken_ones_again():
    plan = TaskPlan(("s", 0), 3, 0, {1: "failed"})
    assert [plan.take().number for _ in range(3)] == [0, 2, 3]
    assert plan.open == 0
    plan.settle(0, "solved")
    plan.put_back(2)
    assert plan.open == 1
    assert plan.take().number == 2
    plan.settle(2, "failed")
    plan.settle(3, "solved")
    assert [attempt.number for attempt in plan.kept()] == [0, 3]


def test_after_a_broken_simulator_is_mended_nothing_is_missing(reference, tmp_path, monkeypatch):
    with pytest.raises(SimulatorError):
        run(tmp_path / "d", env=fakes.make_broken, workers=1)
    assert len(list((tmp_path / "d").rglob("*.error.json"))) == driver.MAX_LOST_IN_A_ROW
    with (tmp_path / "d/.staging/errors.jsonl").open("a") as file:
        file.write('{"suite": "toy", "task_')  # a kill in the middle of a line
    summary = run(tmp_path / "d")
    assert sum(task.errors for task in summary.tasks) == driver.MAX_LOST_IN_A_ROW * driver.MAX_ATTEMPTS
    assert_same(content(tmp_path / "d", tmp_path), content(reference[0], tmp_path))


def test_a_task_is_given_up_after_too_many_failures():
    plan = TaskPlan(("s", 0), 2, 0, dict.fromkeys(range(12), "failed"))
    assert plan.open == 2
    plan.settle(12, "failed")
    assert plan.open == 0
