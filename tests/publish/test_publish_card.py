"""The card of a policy: facts and measured numbers, in a form that the hub reads."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from checkpoint_fakes import make
from rdvla.checkpoints import save_native
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.errors import CheckpointError, ConfigError
from rdvla.eval.intervals import wilson
from rdvla.hub import CHECKPOINT, Repository
from rdvla.policies.sources import fingerprint
from rdvla.publish.card import NOTES_MARK, Facts, model_card, own_words, percent
from rdvla.publish.policy import About, push_policy
from rdvla.report.load import load_runs
from rdvla.stops import StopRule
from report_fakes import write_run

RULES = [StopRule.fixed(4), StopRule("action_mse", 1e-4, max_depth=16)]
TO = Repository("me/arm", CHECKPOINT)
RECIPE = {
    "model": {"preset": "tiny", "init_from": "/home/somebody/runs/first"},
    "data": {"root": ["/home/somebody/cups", "cups/more"]},
    "max_steps": 1200,
    "optimizer": {"learning_rate": 4e-4},
}


@pytest.fixture
def policy(tmp_path):
    save_native(tmp_path / "policy", replace(make(), notes={"recipe": RECIPE}))
    return tmp_path / "policy"


def card_of(source, tmp_path, about):
    push_policy(str(source), TO, about, dry_run=tmp_path / "dry")
    return ModelCard.load(tmp_path / "dry/README.md")


def test_the_hub_reads_its_metadata(policy, tmp_path):
    run = write_run(tmp_path / "played", stops=RULES, errors=1, policy_digest=fingerprint(policy))
    about = About("mit", datasets=["me/cups"], base="them/base", evaluations=[run])
    card = card_of(policy, tmp_path, about)
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "rdvla", "robotics")
    assert card.data.datasets == ["me/cups"]
    assert card.data.base_model == "them/base"
    records = load_runs([run])[0].records
    for result, stop in zip(card.data.eval_results, RULES, strict=True):
        played = [record for record in records if record.stop == stop and record.kind == "episode"]
        solved = sum(record.success for record in played)
        assert result.dataset_name == "libero_object"
        assert result.metric_value == round(100 * solved / len(played), 2)
        assert f"n = {len(played)}" in result.metric_name
        assert percent(wilson(solved, len(played))) in card.text


def test_what_is_known_is_said_and_nothing_else(policy, tmp_path):
    card = card_of(policy, tmp_path, About("mit"))
    assert card.data.eval_results is None
    assert "how often it succeeds is not said" in card.text
    assert "| `max_steps` | 1200 |" in card.text
    assert "`first`" in card.text
    assert "Trained on `cups`, `cups/more`." in card.text
    assert "/home/somebody" not in card.text, "folders of the machine that trained are nobody's business"


def test_a_policy_in_lerobot_s_layout_says_so(tmp_path):
    save_lerobot(tmp_path / "arm", make())
    card = card_of(tmp_path / "arm", tmp_path, About("mit"))
    assert card.data.library_name == "lerobot"
    assert "lerobot-eval --policy.path=me/arm" in card.text


def test_a_finished_run_is_its_policy_with_its_own_measurements(policy, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    policy.rename(run / "policy")
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 0.5, "validation_l1/depth_4": 0.3}\n'
        '{"step": 20, "loss": 0.4, "validation_l1/depth_4": 0.25}\n'
    )
    write_run(run / "evaluations/000010", stops=RULES[1:])  # of another policy, an earlier one
    write_run(run / "evaluations/000020", stops=RULES[:1], policy_digest=fingerprint(run / "policy"))
    card = card_of(run, tmp_path, About("mit"))
    assert "by iterations: 4: 0.2500." in card.text
    assert [result.metric_name.partition(",")[0] for result in card.data.eval_results] == ["% solved (fixed(4)"]


def test_another_policy_s_evaluation_is_refused(policy, tmp_path):
    run = write_run(tmp_path / "played", stops=RULES)
    with pytest.raises(ConfigError, match="another policy"):
        card_of(policy, tmp_path, About("mit", evaluations=[run]))


def test_a_chain_has_its_average(monkeypatch):
    average = SimpleNamespace(value=2.5, low=2.0, high=3.0)
    rate = wilson(3, 10)
    summary = SimpleNamespace(rate=rate, errors=0, mean_iterations=4.0, chain=SimpleNamespace(average=average))
    monkeypatch.setattr("rdvla.publish.card.summarise_group", lambda _: summary)
    record = SimpleNamespace(
        suite="calvin_d", protocol="", rule="fixed(4)", execution="4", init_state=0, placement_seed=None
    )
    card = model_card(Facts("me/arm", make(), "native", "mit", evaluations=[SimpleNamespace(records=[record])]))
    assert f"2.50 in a row (2.00-3.00); all: {percent(rate)}" in card
    solved, length = ModelCard(card).data.eval_results
    assert (solved.metric_value, length.metric_value) == (30.0, 2.5)
    assert length.metric_name == "stages in a row (fixed(4), initial states 0, n = 10, 95 % 2.00 to 3.00)"


def test_the_authors_words_stay(policy, tmp_path):
    push_policy(str(policy), TO, About("mit"), dry_run=tmp_path / "first")
    with (tmp_path / "first/README.md").open("a") as file:
        file.write("\nIt likes milk.\n")
    card = card_of(tmp_path / "first", tmp_path, About("mit"))
    assert card.content.count(NOTES_MARK) == card.content.count("## Limits") == 1
    assert card.content.rstrip().endswith("It likes milk.")
    assert own_words("---\nlicense: mit\n---\n\n# Arm\n") == "# Arm"
    assert own_words("# Arm\n---\n") == "# Arm\n---"


def test_a_card_that_is_no_text(policy, tmp_path):
    (policy / "README.md").write_bytes(b"Greif\xfcbung")
    with pytest.raises(CheckpointError, match=r"cannot read the card '.*README\.md' .*; mend it or move it away"):
        card_of(policy, tmp_path, About("mit"))
