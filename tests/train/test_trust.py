"""What can go wrong in two days: kills at any moment, damaged files, full disks, other processes, exploding losses."""

import json
import random
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train_fakes import Crew, random_batch, record, released_network, run, run_small, small

from rdvla.cli.report import report_command
from rdvla.errors import CheckpointError, ConfigError, DatasetError, RecordError, StorageError, TrainingError
from rdvla.files import owned_folder
from rdvla.report.training import load_training
from rdvla.train.config import OptimizerConfig
from rdvla.train.distributed import Ranks
from rdvla.train.log import MetricsLog
from rdvla.train.loop import Watcher
from rdvla.train.manifest import find_damage, write_manifest
from rdvla.train.optim import make_optimizer
from rdvla.train.step import train_step

MUON = {"muon": True, "warmup_steps": 2}


class Warnings(Watcher):
    def __init__(self):
        self.seen, self.start = [], None

    def warned(self, message):
        self.seen.append(message)

    def started(self, step):
        self.start = step


def weights(folder):
    return (folder / "policy" / "model.safetensors").read_bytes()


def steps_done(folder):
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(
    ("count", "kills"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.slow)], ids=["alone", "of two"]
)
def test_kills_at_random_moments_change_nothing(dataset, tmp_path, count, kills):
    """SIGKILL anywhere, in the middle of saving too: the continued run ends with the very same bytes."""
    rng = random.Random(count)
    changes = {"max_steps": 8, "optimizer": MUON, "model": small(dataset, "")["model"] | {"lora": {"rank": 2}}}
    whole = Crew(tmp_path, small(dataset, tmp_path / "whole", **changes), count=count)
    assert whole.wait() == [0] * count
    values = small(dataset, tmp_path / "killed", **changes)
    for _ in range(kills):
        before = steps_done(tmp_path / "killed")
        crew = Crew(tmp_path, values, count=count)
        target = before + rng.randrange(1, 4)
        while crew.running and steps_done(tmp_path / "killed") < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        victim = rng.randrange(count)
        crew.members[victim].kill()
        codes = crew.wait()
        for rank in set(range(count)) - {victim}:
            said = crew.errors[rank].read_text() if crew.errors[rank].exists() else ""
            assert codes[rank] == 0 or "another process has ended without a word" in said
    assert Crew(tmp_path, values, count=count).wait() == [0] * count
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9)), "a step is missing, or logged twice"


@pytest.mark.slow
def test_a_full_disk_is_said_by_every_process(dataset, tmp_path):
    run_small(dataset, tmp_path / "first", max_steps=1)  # fills the cache of decoded images
    crew = Crew(tmp_path, small(dataset, tmp_path / "run"), count=2, largest_file=10_000)
    assert crew.wait() == [2, 2]
    writer, other = (error.read_text() for error in crew.errors)
    assert writer.startswith("StorageError: cannot write '")
    assert "exceed the allowed size" in writer
    assert other.startswith("PeerError: process 1 stops: process 0: cannot write")
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "half a checkpoint was left"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(dataset, tmp_path):
    whole = run_small(dataset, tmp_path / "whole")
    run_small(dataset, tmp_path / "run", max_steps=3)
    state = tmp_path / "run" / "checkpoints" / "000003" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    watcher = Warnings()
    continued = run_small(dataset, tmp_path / "run", watcher, max_steps=4)
    assert watcher.start == 2
    assert "000003' is damaged (state.pt is not what was written)" in watcher.seen[0]
    assert (tmp_path / "run" / "checkpoints" / "000003.damaged" / "state.pt").exists(), "the user's file is gone"
    assert (whole / "model.safetensors").read_bytes() == (continued / "model.safetensors").read_bytes()


def test_nothing_but_damaged_checkpoints(dataset, tmp_path):
    run_small(dataset, tmp_path / "run", max_steps=1)
    (tmp_path / "run" / "checkpoints" / "000001" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        run_small(dataset, tmp_path / "run", max_steps=2)


def test_a_manifest_notices_every_kind_of_damage(tmp_path):
    (tmp_path / "a").write_text("one")
    write_manifest(tmp_path)
    assert find_damage(tmp_path) is None
    (tmp_path / "a").write_text("two")
    assert find_damage(tmp_path) == "a is not what was written"
    (tmp_path / "a").unlink()
    assert find_damage(tmp_path) == "a is missing"
    (tmp_path / "manifest.json").write_text("{")
    assert "cannot be read" in (find_damage(tmp_path) or "")


def test_a_missing_file_of_the_dataset(tmp_path):
    dataset = record(tmp_path / "demos", episodes=2, length=4)
    run_small(dataset, tmp_path / "run", max_steps=1)
    next((dataset / "data").rglob("*.parquet")).unlink()
    with pytest.raises(DatasetError, match="parquet"):
        run_small(dataset, tmp_path / "run", max_steps=2)


def test_an_output_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        run_small(dataset, tmp_path / "file" / "run")


def test_an_exploding_loss_stops_and_names_the_frames(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("rdvla.train.learner._MEAN_STEPS", 1)
    changes = {"optimizer": {"learning_rate": 1.0, "warmup_steps": 0, "schedule": "constant"}, "max_steps": 20}
    with pytest.raises(TrainingError, match=r"the running mean allows.*episode \d+ frame \d+") as raised:
        run_small(dataset, tmp_path / "run", max_loss_ratio=1.5, **changes)
    assert "no step was taken" in str(raised.value)


def test_a_refused_loss_takes_no_step():
    model = released_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerConfig())
    batch, _ = random_batch(model)
    step = {"ranks": Ranks(), "generator": torch.Generator().manual_seed(0), "clip_grad_norm": 1.0}
    with pytest.raises(TrainingError, match="episode 1 frame 1"):
        train_step(model, optimizer, [batch], highest_loss=1e-3, **step)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_names_the_frames(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("rdvla.train.step.absolute_error", lambda p, t, m: ((p - t).sum() * float("nan"), 1))
    with pytest.raises(TrainingError, match=r"episode \d+ frame \d+"):
        run(dataset, tmp_path / "run", validate_freq=100)


def test_a_run_has_one_folder_of_its_own(dataset, tmp_path):
    """A second process is refused before it touches anything; the first goes on."""

    class Second(Watcher):
        refused = None

        def started(self, step):
            crew = Crew(tmp_path / "second", small(dataset, tmp_path / "run"), count=1)
            Second.refused = crew.wait()

    run_small(dataset, tmp_path / "run", Second())
    assert Second.refused != [0]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)), "steps were logged twice"
    with owned_folder(tmp_path / "run", busy="busy"), pytest.raises(ConfigError, match="another `rdvla train`"):
        run_small(dataset, tmp_path / "run")


def test_what_the_dataset_is_taken_for_is_said_before_the_first_step(dataset, tmp_path):
    class Listener(Watcher):
        said = ()

        def found(self, finding):
            self.said = (*self.said, finding)

        def started(self, step):
            assert self.said, "said too late"

    listener = Listener()
    run_small(dataset, tmp_path / "run", listener, max_steps=1)
    assert "it is taken as 'open_is_negative'" in listener.said[0].what


def test_a_share_of_episodes_that_rounds_to_none_is_told(dataset, tmp_path):
    class Listener(Watcher):
        def __init__(self):
            self.said = []

        def warned(self, message):
            self.said.append(message)

    listener = Listener()
    data = small(dataset, "")["data"] | {"validation_fraction": 0.04}
    run_small(dataset, tmp_path / "run", listener, max_steps=1, data=data)
    assert listener.said == ["data.validation_fraction 0.04 of so few episodes is none: there is no validation."]


def test_a_dataset_that_was_moved_goes_on_and_another_does_not(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "here")
    run_small(tmp_path / "here", tmp_path / "run", max_steps=1)
    other = record(tmp_path / "other", seed=1)
    for wrong, error in ((tmp_path / "typo", DatasetError), (other, TrainingError)):
        with pytest.raises(error):
            run_small(wrong, tmp_path / "run", max_steps=2)
    (tmp_path / "here").rename(tmp_path / "there")
    run_small(tmp_path / "there", tmp_path / "run", max_steps=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["root"] == str(tmp_path / "there")


def test_a_dataset_that_has_grown_meanwhile_is_another(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "here")
    run_small(tmp_path / "here", tmp_path / "run", max_steps=1)
    shutil.rmtree(tmp_path / "here")
    record(tmp_path / "here", episodes=7)
    with pytest.raises(TrainingError, match="holds a run on other data than"):
        run_small(tmp_path / "here", tmp_path / "run", max_steps=2)


def test_settings_that_are_no_mapping_are_refused(dataset, tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(TrainingError, match="must hold a JSON object, found list; choose another output folder"):
        run_small(dataset, tmp_path)


def test_a_failed_start_leaves_nothing(dataset, tmp_path):
    wrong = small(dataset, "")["data"] | {"root": str(tmp_path / "typo")}
    with pytest.raises(DatasetError):
        run_small(dataset, tmp_path / "run", data=wrong)
    assert not (tmp_path / "run").exists()
    run_small(dataset, tmp_path / "run")


def test_a_number_that_is_not_finite_is_null_in_the_log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", [], from_step=0)
    log.write(1, {"loss": 0.5, "validation_l1/depth_1": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": 0.5,
        "validation_l1/depth_1": None,
    }
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # the run is still writing
    assert load_training(tmp_path).numbers == {"loss": [(1.0, 0.5)]}


@pytest.mark.parametrize(
    ("config", "metrics", "message"),
    [
        (None, '{"step": 1, "loss": 0.5}\n', r"damaged .*config\.json"),
        ("{", '{"step": 1, "loss": 0.5}\n', "damaged"),
        ("{}", "", "no training step yet"),
        ("{}", '{"step": 1, "loss": 0.5', "no training step yet"),
        ("{}", '{"step": 1, "lo\n{"step": 2, "loss": 0.5}\n', "damaged"),
        ("{}", '{"loss": 0.5}\n', "damaged"),
        ("{}", '{"step": NaN, "loss": 0.5}\n', "damaged .*a step is nan"),
        ("{}", '{"step": 1, "loss": "low"}\n', "damaged"),
        ("{}", "[1, 0.5]\n", "damaged"),
        ("{}", '{"step": 1, "loss": NaN}\n', "no training step yet"),
    ],
)
def test_a_damaged_run_is_no_page(tmp_path, config, metrics, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(RecordError, match=message):
        report_command([str(tmp_path)], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_numbers_that_are_none_leave_a_gap(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    lines = ['{"step": 1, "loss": 0.5, "validation_l1/depth_1": NaN}', '{"step": 2, "loss": Infinity}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "loss": 0.25}']) + "\n")
    assert load_training(tmp_path).numbers == {"loss": [(1.0, 0.5), (3.0, 0.25)]}
    with pytest.raises(ConfigError, match="a training run has a page of its own"):
        report_command([f"mine={tmp_path}"], tmp_path / "page.html")
    report_command([str(tmp_path)], tmp_path / "page.html")
    assert "nan" not in (tmp_path / "page.html").read_text().lower()


def test_sentences_that_were_mended_meanwhile_are_other_words(dataset, tmp_path):
    """The tokenizer is made of them: its numbers would stand for other words."""
    shutil.copytree(dataset, tmp_path / "here")
    run_small(tmp_path / "here", tmp_path / "run", max_steps=1)
    path = tmp_path / "here" / "meta/tasks.parquet"
    table = pq.read_table(path)
    words = [f"{text} slowly" for text in table["task"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("task"), "task", pa.array(words)), path)
    with pytest.raises(TrainingError, match="learned other words than the sentences"):
        run_small(tmp_path / "here", tmp_path / "run", max_steps=2)
