"""Uploading and downloading, through `huggingface_hub` itself, to and from a stand-in of the hub."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import hub_fakes
from checkpoint_fakes import act, make, same_tensors
from rdvla.checkpoints import load, save_native, save_official
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.cli.convert import convert_command
from rdvla.data.lerobot_meta import VERSION, demonstration_features
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import CheckpointError, DatasetError, RecordError, StorageError
from rdvla.hub import CHECKPOINT, DATASET, Repository, resolve
from rdvla.policies import load_policy
from rdvla.policies.sources import fingerprint
from rdvla.publish.dataset import push_dataset
from rdvla.publish.policy import About, push_policy

# huggingface_hub's own upload passes bytes in a way that its HTTP client has begun to discourage.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NATIVE = {"README.md", "config.json", "model.safetensors", "norm_stats.json", "tokenizer.json"}
ABOUT = About("apache-2.0")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_fakes.serving() as hub:
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(constants + "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants + "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants + "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", hub_fakes.TOKEN)
        yield hub


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    save_native(folder, make())
    return folder


def model(name="me/arm", **options):
    return Repository(name, CHECKPOINT, **options)


def there(hub, name="me/arm", kind="model", revision="main"):
    _, files = hub.repos[kind, name].at(revision)
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def test_a_policy_comes_back_by_name_and_revision(hub, policy):
    first = push_policy(str(policy), model(), ABOUT)
    assert hub.repos["model", "me/arm"].private
    assert set(there(hub)) == NATIVE
    other = make(seed=1)
    save_native(policy.parent / "other", other)
    second = push_policy(str(policy.parent / "other"), model(), ABOUT)
    assert first != second
    again = load("me/arm", revision=first)
    assert same_tensors(again, load(policy))
    np.testing.assert_array_equal(act(load("me/arm")), act(other))
    assert load_policy(f"me/arm@{first}").metadata.chunk_size == 4


def test_the_uploaded_policy_has_the_fingerprint_of_the_local_one(hub, policy):
    from rdvla.checkpoints.load import find

    push_policy(str(policy), model(), ABOUT)
    assert fingerprint(find("me/arm")) == fingerprint(policy)


def test_an_interrupted_upload_continues(hub, tmp_path):
    save_lerobot(tmp_path / "arm", make())
    big = tmp_path / "arm" / "rdvla" / "extra.json"
    big.write_text(json.dumps("x" * 3 * hub_fakes.LARGE))
    large = [path for path in (tmp_path / "arm").rglob("*.*") if path.stat().st_size >= hub_fakes.LARGE]
    hub.refuse_after = 1
    with pytest.raises(CheckpointError, match=r"me/arm.*repeat the command"):
        push_policy(str(tmp_path / "arm"), model(), ABOUT)
    assert not there(hub), "nothing half-done is visible"
    hub.refuse_after = None
    push_policy(str(tmp_path / "arm"), model(), ABOUT)
    assert len(large) > 1
    assert len(hub.sent) == len(set(hub.sent)) == len(large), "nothing was sent twice"
    assert load("me/arm").step == 12


def test_what_was_there_and_is_gone_is_removed(hub, policy, tmp_path):
    save_lerobot(tmp_path / "lerobot", make())
    push_policy(str(tmp_path / "lerobot"), model(), ABOUT)
    assert "policy_preprocessor.json" in there(hub)
    push_policy(str(policy), model(), ABOUT)
    assert set(there(hub)) == NATIVE


def test_a_branch(hub, policy):
    push_policy(str(policy), model(revision="trial"), ABOUT)
    assert set(there(hub, revision="trial")) == NATIVE
    assert not there(hub)
    assert same_tensors(load("me/arm@trial"), load(policy))


def test_private_and_public_are_not_changed_in_passing(hub, policy):
    push_policy(str(policy), model(public=True), ABOUT)
    assert not hub.repos["model", "me/arm"].private
    with pytest.raises(CheckpointError, match="is public; repeat with --public"):
        push_policy(str(policy), model(), ABOUT)
    push_policy(str(policy), model("me/hidden"), ABOUT)
    with pytest.raises(CheckpointError, match="is private; repeat without --public"):
        push_policy(str(policy), model("me/hidden", public=True), ABOUT)


def test_who_may_not_write(hub, policy, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(CheckpointError, match="role 'write'"):
        push_policy(str(policy), model(), ABOUT)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(CheckpointError, match="log in again"):
        push_policy(str(policy), model(), ABOUT)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="no token"):
        push_policy(str(policy), model(), ABOUT)
    assert not hub.repos


def test_a_card_that_the_hub_refuses(hub, policy, tmp_path):
    hub.licences = {"apache-2.0", "mit"}
    named = r"the hub refuses.*'me/arm'.*\"license\" must be one of \[apache-2\.0, mit\]\..*--license, --dataset"
    with pytest.raises(CheckpointError, match=named):
        push_policy(str(policy), model(), replace(ABOUT, licence="apache2"))
    demos = str(demonstrations(tmp_path / "demos"))
    with pytest.raises(DatasetError, match=r"must be one of.*--license and README\.md"):
        push_dataset(demos, Repository("me/demos", DATASET, tag=VERSION), "ccby")
    assert not there(hub)


def test_no_hub(hub, policy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="was not finished"):
        push_policy(str(policy), model(), ABOUT)


def test_a_dry_run_writes_what_would_be_uploaded(policy, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert push_policy(str(policy), model(), ABOUT, dry_run=tmp_path / "dry") is None
    assert {path.name for path in (tmp_path / "dry").iterdir()} == NATIVE
    assert not any(path.is_symlink() for path in (tmp_path / "dry").iterdir())
    assert fingerprint(tmp_path / "dry") == fingerprint(policy)
    with pytest.raises(StorageError, match="already exists"):
        push_policy(str(policy), model(), ABOUT, dry_run=tmp_path / "dry")


def test_a_place_that_is_taken_is_said_before_anything_is_read(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(StorageError, match="already exists"):
        convert_command("absent", tmp_path)
    with pytest.raises(StorageError, match="already exists"):
        push_policy("absent", Repository("me/x", CHECKPOINT), About("mit"), dry_run=tmp_path)
    with pytest.raises(StorageError, match="already exists"):
        push_dataset("absent", Repository("me/x", DATASET), "mit", dry_run=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_no_pickles(tmp_path):
    save_official(tmp_path / "released", make("released"))
    with pytest.raises(CheckpointError, match=r"pickles.*rdvla convert"):
        push_policy(str(tmp_path / "released"), model(), ABOUT, dry_run=tmp_path / "dry")


def test_mistakes_are_named(policy, tmp_path):
    def push(folder, about=ABOUT):
        push_policy(str(folder), model(), about, dry_run=tmp_path / "dry")

    with pytest.raises(CheckpointError, match=r"owner/name"):
        model("arm")
    with pytest.raises(CheckpointError, match="no folder"):
        push(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no folder 'me/other'"):
        push("me/other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        push(tmp_path / "empty")
    (tmp_path / "run").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("{}\n")
    with pytest.raises(CheckpointError, match="not finished: repeat its 'rdvla train'"):
        push(tmp_path / "run")
    (tmp_path / "run/checkpoints/000500/policy").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"000500/policy' to publish it as it is"):
        push(tmp_path / "run")
    (tmp_path / "played").mkdir()
    (tmp_path / "played/episodes.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="--evaluation"):
        push(tmp_path / "played")
    with pytest.raises(RecordError):
        push(policy, replace(ABOUT, evaluations=[tmp_path / "empty"]))
    torn = tmp_path / "torn"
    save_native(torn, make())
    (torn / "norm_stats.json").unlink()
    with pytest.raises(CheckpointError, match=r"norm_stats\.json"):
        push(torn)


def demonstrations(root, episodes=2):
    features = demonstration_features({"observation.images.image": (24, 32)}, ["x"], ["x"])
    writer = LeRobotWriter(root, fps=10, features=features)
    for number in range(episodes):
        column = np.arange(5, dtype=np.float32)[:, None] / 5
        picture = np.full((24, 32, 3), number, np.uint8)
        columns = {"observation.state": column, "action": column}
        writer.add_episode(RecordedEpisode("go on", columns, {"observation.images.image": [picture] * 5}))
    writer.finalize()
    return root


def test_a_dataset_comes_back_by_name(hub, tmp_path):
    root = demonstrations(tmp_path / "demos")
    (root / ".staging").mkdir()
    (root / ".staging/old").write_text("not part of it")
    to = Repository("me/demos", DATASET, tag=VERSION)
    push_dataset(str(root), to, "cc-by-4.0")
    commit = push_dataset(str(demonstrations(tmp_path / "more", episodes=3)), to, "cc-by-4.0")
    repo = hub.repos["dataset", "me/demos"]
    assert repo.private
    assert repo.tags == {VERSION: commit}, "LeRobot looks for the tag of the format's version"
    assert not any("staging" in path for path in repo.at("main")[1])
    dataset = LeRobotDataset.open(f"me/demos@{VERSION}", chunk_size=2, cache_dir=tmp_path / "cache")
    assert len(dataset) == 15
    card = yaml.safe_load(repo.at("main")[1]["README.md"].decode().split("---")[1])
    assert card["license"] == "cc-by-4.0"
    assert "LeRobot" in card["tags"]


def test_the_card_of_a_dataset_is_kept(tmp_path):
    root = demonstrations(tmp_path / "demos")
    to = Repository("me/demos", DATASET)
    with pytest.raises(DatasetError, match="licence"):
        push_dataset(str(root), to, None, dry_run=tmp_path / "dry")
    (root / "README.md").write_text("---\nlicense: mit\ntags: [cups]\n---\n\n# By hand\n")
    push_dataset(str(root), to, None, dry_run=tmp_path / "dry")
    _, front, text = (tmp_path / "dry/README.md").read_text().split("---", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert yaml.safe_load(front)["tags"][0] == "cups"
    assert text.strip() == "# By hand"


def test_what_a_dataset_links_to_is_uploaded_too(tmp_path):
    root = demonstrations(tmp_path / "demos")
    push_dataset(str(root), Repository("me/demos", DATASET), "mit", dry_run=tmp_path / "whole")
    (root / "data/chunk-000").rename(tmp_path / "elsewhere")
    (root / "data/chunk-000").symlink_to(tmp_path / "elsewhere")
    push_dataset(str(root), Repository("me/demos", DATASET), "mit", dry_run=tmp_path / "linked")
    whole, linked = (
        sorted(p.relative_to(d) for p in d.rglob("*") if p.is_file()) for d in (tmp_path / "whole", tmp_path / "linked")
    )
    assert linked == whole


def test_datasets_that_are_none(tmp_path):
    to = Repository("me/demos", DATASET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no folder"):
        push_dataset(str(tmp_path / "nowhere"), to, "mit", dry_run=tmp_path / "dry")
    with pytest.raises(DatasetError, match="not finished"):
        push_dataset(str(tmp_path / "empty"), to, "mit", dry_run=tmp_path / "dry")
    broken = demonstrations(tmp_path / "broken")
    next((broken / "data").rglob("*.parquet")).write_bytes(b"")
    with pytest.raises(DatasetError, match="rdvla dataset check"):
        push_dataset(str(broken), to, "mit", dry_run=tmp_path / "dry")


def test_the_commands(hub, policy, tmp_path):
    """In processes of their own, told only by HF_ENDPOINT and HF_TOKEN."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub_fakes.TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)

    def rdvla(*arguments):
        command = [sys.executable, "-m", "rdvla", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    pushed = rdvla("push", policy, "me/arm", "--license", "apache-2.0")
    assert pushed.returncode == 0, pushed.stderr
    sha = hub.repos["model", "me/arm"].branches["main"]
    assert f'load_policy("me/arm@{sha}")' in pushed.stdout
    converted = rdvla("convert", f"me/arm@{sha}", tmp_path / "back", "--to", "native")
    assert converted.returncode == 0, converted.stderr
    assert same_tensors(load(tmp_path / "back"), load(policy))
    pushed = rdvla("dataset", "push", demonstrations(tmp_path / "demos"), "me/demos", "--license", "mit")
    assert pushed.returncode == 0, pushed.stderr
    assert Path("data/chunk-000/file-000.parquet").as_posix() in there(hub, "me/demos", "dataset")
    environment.pop("HF_TOKEN")
    refused = rdvla("push", policy, "me/arm", "--license", "apache-2.0")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no token"), refused.stderr


def test_a_download_that_breaks_off_is_no_traceback(monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    class BrokenOff(HfHubHTTPError.__bases__[0]):
        pass

    def snapshot_download(*_, **__):
        raise BrokenOff("peer closed connection without sending complete message body")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"could not download 'me/arm' \(peer closed .*repeat the command"):
        resolve("me/arm", CHECKPOINT)
