import json
from pathlib import Path

import numpy as np
import pytest

from rdvla.data.stats import DatasetStatistics, NormStats, load_statistics, save_statistics, select_statistics
from rdvla.errors import CheckpointError, DatasetError
from rdvla.types import ActionConvention

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden" / "data"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the published numbers are not on this machine")


def stats(q01, q99, mask=None, low=None, high=None):
    q01, q99 = np.asarray(q01, float), np.asarray(q99, float)
    return NormStats(
        q01=q01,
        q99=q99,
        min=np.asarray(low, float) if low is not None else q01 - 1,
        max=np.asarray(high, float) if high is not None else q99 + 1,
        mean=q01,
        std=q01,
        mask=np.ones(len(q01), bool) if mask is None else np.asarray(mask),
    )


def test_compute_on_a_column_whose_answer_is_known():
    column = np.arange(101, dtype=np.float32)[:, None] * np.float32([1, -2])
    found = NormStats.compute(column, mask=[True, False])
    np.testing.assert_allclose(found.q01, [1, -198])
    np.testing.assert_allclose(found.q99, [99, -2])
    np.testing.assert_allclose(found.mean, [50, -100])
    np.testing.assert_allclose(found.std, [np.sqrt(850), 2 * np.sqrt(850)])  # population: (n^2 - 1) / 12
    assert (found.min.tolist(), found.max.tolist(), found.count) == ([0, -200], [100, 0], 101)


def test_normalise_clips_masks_and_zeroes_constants():
    norm = stats([0, 0, 5, 0], [10, 10, 5, 1], mask=[True, True, True, False], low=[-1, -1, 5, 0], high=[11, 11, 5, 1])
    np.testing.assert_allclose(norm.normalise(np.float32([5, 20, 5, 0.25])), [0, 1, 0, 0.25], atol=1e-8)
    np.testing.assert_allclose(norm.normalise(np.float32([[0, -3, 7, 1]])), [[-1, -1, 0, 1]], atol=1e-8)


def test_unnormalise_does_not_clip():
    norm = stats([0, 0], [10, 1], mask=[True, False])
    np.testing.assert_allclose(norm.unnormalise(np.float32([1.5, 0.7])), [12.5, 0.7], rtol=1e-6)


def test_round_trip_inside_the_bounds():
    rng = np.random.default_rng(0)
    column = rng.normal(size=(500, 3)).astype(np.float32)
    norm = NormStats.compute(column)
    inside = np.clip(column, norm.q01, norm.q99)
    np.testing.assert_allclose(norm.unnormalise(norm.normalise(column)), inside, atol=1e-6)


@pytest.mark.parametrize(
    "column", [np.zeros((0, 3), np.float32), np.zeros(3, np.float32), np.float32([[0, np.nan], [1, 1]])]
)
def test_compute_refuses(column):
    with pytest.raises(DatasetError):
        NormStats.compute(column)


def test_sizes_must_fit():
    norm = stats([0, 0], [1, 1])
    with pytest.raises(DatasetError, match="different robots"):
        norm.normalise(np.zeros((4, 3), np.float32))


def test_json_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    action = NormStats.compute(rng.normal(size=(50, 7)).astype(np.float32), mask=[True] * 6 + [False])
    state = NormStats.compute(rng.normal(size=(50, 8)).astype(np.float32))
    save_statistics(tmp_path / "s.json", {"toy": DatasetStatistics(action, state, 50, 2)})
    loaded = load_statistics(tmp_path / "s.json")["toy"]
    assert loaded.num_transitions == 50
    assert loaded.num_trajectories == 2
    for name in ("q01", "q99", "min", "max", "mean", "std", "mask"):
        np.testing.assert_array_equal(getattr(loaded.action, name), getattr(action, name))


def test_select_statistics():
    entry = DatasetStatistics(stats([0], [1]), stats([0], [1]), 1, 1)
    table = {"libero_spatial_no_noops": entry, "toy": entry}
    assert select_statistics(table, "libero_spatial") is entry
    with pytest.raises(CheckpointError, match="name one"):
        select_statistics(table, None)
    with pytest.raises(CheckpointError, match="Did you mean 'toy'"):
        select_statistics(table, "toys")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "must map"),
        ('{"a": {"action": {}}}', "proprio"),
        ('{"a": {"action": {"q01": [1]}, "proprio": {}}}', "lacks"),
    ],
)
def test_damaged_statistics(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_statistics(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min": [1.0, 0.0], "max": [-1.0, 1.0]}, "entry 0 has min 1, .*max -1"),
        ({"q01": [-0.9, 0.9], "q99": [0.9, -0.9]}, "entry 1 has .*q01 0.9, q99 -0.9"),
        ({"q99": [5.0, 0.9]}, "entry 0 has .*q99 5, max 1"),
        ({"q01": [-5.0, -0.9]}, "entry 0 has .*q01 -5"),
        ({"std": [-1.0, 0.5]}, "std -1"),
        ({"q01": [float("nan"), 0.0]}, "finite numbers"),
        ({"max": [1e308, 1.0]}, "as float32 holds them"),
        ({"q01": ["-0.9", "-0.9"]}, "list of numbers"),
        ({"q01": [True, -0.9]}, "list of numbers"),
        ({"q01": [None, -0.9]}, "list of numbers"),
        ({"q01": [[-0.9], [-0.9]]}, "list of numbers"),
        ({"q01": -0.9}, "list of numbers"),
        ({"q01": [-0.9]}, "different length"),
        ({"mask": ["true", "true"]}, "true and false"),
    ],
)
def test_statistics_that_no_data_have(tmp_path, changes, message):
    """They would turn actions round, or make them larger than any that were recorded."""
    low, high = [-0.9, -0.9], [0.9, 0.9]
    vectors = {"mean": [0.0, 0.0], "std": [0.5, 0.5], "min": [-1.0, -1.0], "max": [1.0, 1.0], "q01": low, "q99": high}
    for part in ("action", "proprio"):
        document = {"action": vectors, "proprio": vectors, "num_transitions": 3, "num_trajectories": 1}
        (tmp_path / "s.json").write_text(json.dumps({"a": document}))
        load_statistics(tmp_path / "s.json")
        (tmp_path / "s.json").write_text(json.dumps({"a": document | {part: vectors | changes}}))
        with pytest.raises(CheckpointError, match=rf"a\.{part}.*{message}"):
            load_statistics(tmp_path / "s.json")


def test_a_mask_that_we_have_written_is_there_again(tmp_path):
    """Without it, a gripper would be taken for a number that is normalised."""
    stats = NormStats.compute(np.zeros((3, 2), np.float32)).to_json()
    document = {"a": {"action": {name: stats[name] for name in stats if name != "mask"}, "proprio": stats}}
    (tmp_path / "s.json").write_text(json.dumps(document))
    assert load_statistics(tmp_path / "s.json")["a"].action.mask.all()
    with pytest.raises(CheckpointError, match=r"a\.action lacks mask"):
        load_statistics(tmp_path / "s.json", masks=True)


@pytest.mark.parametrize("count", [-1, "many", None, 2.5, True])
def test_counts_that_are_none(tmp_path, count):
    path = tmp_path / "s.json"
    stats = NormStats.compute(np.zeros((3, 2), np.float32)).to_json()
    path.write_text(json.dumps({"a": {"action": stats, "proprio": stats, "num_transitions": count}}))
    with pytest.raises(CheckpointError, match=r"num_transitions .* must be whole numbers"):
        load_statistics(path)


def test_missing_statistics(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        load_statistics(tmp_path / "s.json")


@needs_golden
def test_published_statistics_and_normalisation():
    golden = np.load(GOLDEN / "golden_data.npz")
    published = load_statistics(GOLDEN / "dataset_statistics.json")["libero_spatial_no_noops"]
    mask = [True] * 6 + [False]
    action = NormStats.compute(np.concatenate([golden["t0.std_action"], golden["t1.std_action"]]), mask)
    state = NormStats.compute(np.concatenate([golden["t0.std_proprio"], golden["t1.std_proprio"]]))
    document = json.loads((GOLDEN / "dataset_statistics.json").read_text())["libero_spatial_no_noops"]
    assert document["num_transitions"] == action.count
    for name in ("q01", "q99", "min", "max", "mean", "std"):
        np.testing.assert_allclose(getattr(action, name), getattr(published.action, name), atol=1e-6)
        np.testing.assert_allclose(getattr(state, name), getattr(published.state, name), atol=1e-6)
    for t in ("t0", "t1"):
        np.testing.assert_allclose(action.normalise(golden[f"{t}.std_action"]), golden[f"{t}.norm_action"], atol=1e-6)
        np.testing.assert_allclose(state.normalise(golden[f"{t}.std_proprio"]), golden[f"{t}.norm_proprio"], atol=1e-6)


@pytest.mark.parametrize(("gripper", "command"), [("open_is_negative", -1.0), ("open_is_positive", 1.0)])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_gripper_that_never_moves_stays_as_it_was(gripper, command, side):
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)
    actions[:, -1] = side * command
    convention = ActionConvention(gripper)
    found = DatasetStatistics.compute(actions, actions[:, :3], convention, num_trajectories=1).action
    targets = found.normalise(convention.from_env(actions))
    np.testing.assert_array_equal(convention.to_env(found.unnormalise(targets))[:, -1], actions[:, -1])


@pytest.mark.parametrize("still", [0.0, 0.6])
def test_one_glitch_does_not_decide_the_bounds(still):
    rng = np.random.default_rng(0)
    column = rng.uniform(-0.5, 0.5, (6000, 1)) * (rng.random((6000, 1)) >= still)
    column[17] = 314.16
    found = NormStats.compute(column.astype(np.float32))
    assert -0.5 <= found.q01[0] < -0.4
    assert 0.4 < found.q99[0] <= 0.5


def test_what_acts_in_one_row_of_two_hundred_keeps_its_range():
    column = np.zeros((1000, 1), np.float32)
    column[::200] = 0.8
    found = NormStats.compute(column)
    assert (found.q01[0], found.q99[0]) == (0.0, np.float32(0.8))
