import json
import re

import numpy as np
import pytest
from data_recordings import PRIMARY, STATE, WRIST, episode, record
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.lerobot_meta import STATS_PATH
from rdvla.data.summary import summarise
from rdvla.errors import DatasetError, StorageError
from rdvla.report.dataset import write_dataset_page


@pytest.fixture
def root(tmp_path):
    tasks = ["pick up the cup", "open the drawer", "pick up the cup"]
    record(tmp_path / "d", [episode(seed, length=5 + seed, task=task) for seed, task in enumerate(tasks)])
    return tmp_path / "d"


def test_numbers(root):
    summary = summarise(root, num_samples=2)
    assert summary.lengths.tolist() == [5, 6, 7]
    found = [(task.instruction, task.episodes, task.frames) for task in summary.tasks]
    assert found == [("pick up the cup", 2, 12), ("open the drawer", 1, 6)]
    assert [vector.key for vector in summary.vectors] == [STATE, "action"]
    state = np.concatenate([episode(seed, length=5 + seed).columns[STATE] for seed in range(3)])
    np.testing.assert_allclose(summary.vectors[0].stats.q99, np.quantile(state, 0.99, axis=0), rtol=1e-6)
    assert summary.vectors[0].histograms.sum(axis=1).tolist() == [18] * 8
    assert [sample.episode for sample in summary.samples] == [0, 2]
    assert set(summary.samples[0].images) == {PRIMARY, WRIST}
    (gripper,) = summary.remarks
    assert "the last entry is" in gripper


def test_percentiles_of_merged_episodes_are_noticed(root):
    path = root / STATS_PATH
    stats = json.loads(path.read_text())
    stats[STATE]["q99"] = stats[STATE]["max"]
    path.write_text(json.dumps(stats))
    (remark,) = [remark for remark in summarise(root).remarks if "percentiles" in remark]
    assert STATE in remark
    assert "not the data's percentiles" in remark


def test_what_never_changes_and_what_repeats_is_said(tmp_path):
    still = episode(0, length=9, render_every=3)
    still.columns["action"][:, 2] = 0.5
    record(tmp_path / "d", [still], fresh=True)
    remarks = summarise(tmp_path / "d").remarks
    assert any("entries [2] never change" in remark for remark in remarks)
    assert remarks[-1].startswith("33% of the rows")


def test_an_entry_that_hardly_changes(tmp_path):
    still = episode(0, length=9)
    still.columns["action"][:, 2] = 0.5
    still.columns["action"][4:, 2] = np.nextafter(np.float32(0.5), np.float32(1))
    record(tmp_path / "d", [still])
    counts = summarise(tmp_path / "d").vectors[1].histograms[2]
    assert (counts[0], counts[-1], counts.sum()) == (4, 5, 9)


def test_the_command_prints_tables_and_writes_a_page(root, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["dataset", "inspect", str(root), "--output", str(page), "--samples", "2"])
    assert result.exit_code == 0, result.output
    assert "3 episodes, 18 frames at 20 per second" in result.output
    assert "open the drawer" in result.output
    html = page.read_text()
    assert html.count('src="data:image/jpeg;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:)', html), "the page needs nothing else"
    assert html.count("<svg") == 2 + 8 + 7
    for name in ("s7", "a6", "open the drawer", "3 episodes of 2 tasks, 18 frames"):
        assert name in html


def test_errors(root, tmp_path):
    with pytest.raises(DatasetError, match="no dataset directory"):
        summarise(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_dataset_page(summarise(root), tmp_path / "file" / "page.html")
