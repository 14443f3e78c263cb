"""The 1,000 chains, the rules that make them, sentences, and random chains. Nothing here starts the simulator."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from calvin_files import ASSETS, GOLDEN, needs_calvin, needs_files, needs_recordings
from rdvla.doctor.golden_calvin import check_chains
from rdvla.envs.calvin import chains
from rdvla.envs.calvin.assets import load_scene
from rdvla.envs.calvin.chains import evaluation_chain, random_start, start_obs
from rdvla.envs.calvin.rules import RULES, follow, outcomes
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.envs.calvin.tasks import TASKS
from rdvla.errors import ConfigError

PUBLISHED = "90191d9ac76baecb4f292ab766bbbf3ae65dbf43a83bbe5c376d99db10fd6446"
"""SHA-256 of [[situation, tasks], ...] as compact JSON with sorted keys."""


def test_all_chains_are_the_published_ones():
    ours = [evaluation_chain(index) for index in range(1000)]
    text = json.dumps([[dict(each.initial), each.tasks] for each in ours], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED


@pytest.mark.parametrize("situation", [0, 191])
def test_the_table_of_chains_is_what_the_rules_generate(situation):
    (places,) = np.nonzero(chains.published_order() == situation)
    assert sorted(chains.generate(situation)) == sorted(evaluation_chain(index).tasks for index in places)


@needs_calvin
@needs_recordings
def test_recorded_chains_and_their_start_states(monkeypatch):
    monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))
    assert [check.status for check in check_chains(GOLDEN / "chains.json")] == ["pass"] * 4


def test_the_seed_of_a_situation():
    assert chains._fnv(str(evaluation_chain(0).initial.values())) == 2138410836


@pytest.mark.parametrize("index", [-1, 1000, True])
def test_chains_that_are_not_there(index):
    with pytest.raises(ConfigError, match=r"chains 0\.\.999"):
        evaluation_chain(index)


def test_every_task_has_a_rule_and_sentences():
    assert set(RULES) == set(TASKS) == set(SENTENCES)
    assert len(TASKS) == 34
    sentences = [sentence for each in SENTENCES.values() for sentence in each]
    assert len(set(sentences)) == len(sentences) >= 3 * 34


@needs_calvin
def test_the_sentences_of_the_evaluation():
    import yaml

    file = ASSETS / "conf/annotations/new_playtable_validation.yaml"
    if not file.exists():
        pytest.skip("the published sentences are no data file that is needed, and not here")
    text = file.read_text(encoding="utf-8")
    assert {task: [sentences[0]] for task, sentences in SENTENCES.items()} == yaml.safe_load(text)


def test_rules():
    situation = dict(evaluation_chain(0).initial) | {"red_block": "slider_left", "slider": "right", "grasped": 0}
    assert outcomes(situation, "lift_red_block_slider") == [{**situation, "red_block": "grasped", "grasped": 1}]
    assert outcomes({**situation, "slider": "left"}, "lift_red_block_slider") == []
    held = follow(situation, ["lift_red_block_slider"])
    assert outcomes(held, "open_drawer") == []  # the hand is not free
    assert outcomes(held, "place_in_slider")[0]["red_block"] == "slider_right"
    assert follow(situation, ["turn_on_led", "turn_on_lightbulb"]) is None  # two of a kind


@needs_files
class TestRandomStarts:
    @pytest.fixture(params="ABCD")
    def scene(self, request):
        return load_scene(request.param, ASSETS)

    def test_are_chains_with_blocks_where_the_situation_says(self, scene):
        order = [f"{name.removeprefix('block_')}_block" for name in scene.blocks]
        for seed in range(20):
            chain, obs = random_start(np.random.default_rng(seed), scene)
            assert follow(chain.initial, chain.tasks) is not None
            for block, pose in zip(order, np.split(obs[6:], 3), strict=True):
                low, high = np.array(scene.surfaces[chain.initial[block]])
                assert (low <= pose[:3]).all()
                assert (pose[:3] <= high).all()
            assert (obs[3] > 0) == obs[4] == chain.initial["lightbulb"]
            left = 0.24 if scene.name == "C" else 0.28
            assert obs[0] == (left if chain.initial["slider"] == "left" else 0)

    def test_leave_the_slider_its_way_and_keep_off_the_ends(self, scene):
        order = [f"{name.removeprefix('block_')}_block" for name in scene.blocks]
        for seed in range(50):
            chain, obs = random_start(np.random.default_rng(seed), scene)
            poses = dict(zip(order, np.split(obs[6:], 3), strict=True))
            for block, (x, y, *_) in poses.items():
                if chain.initial[block] == "table":
                    assert abs(x) <= 0.32
                else:
                    assert y >= 0.09

    def test_depend_on_the_seed_alone_and_cover_all_tasks(self, scene):
        drawn = [random_start(np.random.default_rng(seed), scene) for seed in range(120)]
        again = random_start(np.random.default_rng(7), scene)
        assert again[0] == drawn[7][0]
        np.testing.assert_array_equal(again[1], drawn[7][1])
        assert {task for chain, _ in drawn for task in chain.tasks} == set(TASKS)

    def test_are_no_starts_of_the_evaluation(self, scene):
        evaluated = {start_obs(evaluation_chain(index), scene)[6:9].tobytes() for index in range(1000)}
        drawn = {random_start(np.random.default_rng(seed), scene)[1][6:9].tobytes() for seed in range(200)}
        assert len(evaluated) <= 4
        assert not drawn & evaluated

    def test_one_task_alone_makes_sense_where_it_begins(self, scene):
        for task in chains.first_tasks():
            drawn = [random_start(np.random.default_rng(seed), scene, task) for seed in range(3)]
            for chain, _ in drawn:
                assert chain.tasks == (task,)
                assert follow(chain.initial, [task]) is not None
            assert len({obs.tobytes() for _, obs in drawn}) == 3

    def test_evaluation_chains_have_a_place_in_every_scene(self, scene):
        for index in range(20):
            chain = evaluation_chain(index)
            poses = dict(zip(scene.blocks, np.split(start_obs(chain, scene)[6:], 3), strict=True))
            for name, pose in poses.items():
                place = chain.initial[f"{name.removeprefix('block_')}_block"]
                low, high = np.array(scene.surfaces[place])
                assert (low[:2] <= pose[:2]).all()
                assert (pose[:2] <= high[:2]).all()


@needs_files
def test_a_scene_lists_its_blocks_in_its_own_order():
    scene = load_scene("D", ASSETS)
    turned = replace(scene, blocks=dict(reversed(scene.blocks.items())))
    chain = evaluation_chain(3)
    there, here = np.split(start_obs(chain, scene)[6:], 3), np.split(start_obs(chain, turned)[6:], 3)
    np.testing.assert_array_equal(there, here[::-1])
