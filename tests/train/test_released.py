"""The released code's configuration files, our recipes, and the named choices of layers."""

from pathlib import Path

import pytest

from checkpoint_fakes import statistics
from rdvla.checkpoints.official_beside import derived_gripper
from rdvla.config import apply_overrides, load_yaml
from rdvla.embodiment import CALVIN
from rdvla.errors import ConfigError
from rdvla.train.config import TrainConfig
from rdvla.train.presets import LAYERS, changed, preset_network
from rdvla.train.released import is_released, translate

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
STEPS = {"spatial": 40_000, "object": 40_000, "goal": 60_000, "long": 75_000}


def released(suite, **changes):
    """Return the keys and values of a released training file."""
    name = {"long": "libero_10"}.get(suite, f"libero_{suite}")
    head = {
        "hidden_dim": 896,
        "num_heads": 8,
        "prelude_vlm_layers": [11],
        "recurrent_vlm_layers": [23, 23],
        "coda_vlm_layers": [23],
        "action_chunk_len": 8,
        "action_dim": 7,
        "mean_recurrence": 32,
        "backprop_depth": 8,
        "random_iterations": True,
        "init_std": 0.632,
        "rms_norm_eps": 1e-6,
        "rope_base": 10000.0,
    }
    return {
        "action_head": {"type": "recurrent", "recurrent": head},
        "data": {"data_root_dir": "data/libero", "dataset_name": f"{name}_no_noops", "image_aug": True},
        "batch_size": 16,
        "grad_accumulation_steps": 2,
        "max_steps": STEPS[suite],
        "save_freq": 5000,
    } | changes


def settled(config):
    """Return what a configuration amounts to."""
    model = config.model
    network = changed(preset_network(model.preset, vocab_size=model.vocab_size), model.changes)
    plain = config.model_dump(exclude={"output": True, "keep": True, "data": {"root"}, "model": {"layers", "head"}})
    # Rates of Muon have no meaning without it.
    for name in ("muon_learning_rate", "muon_weight_decay"):
        plain["optimizer"].pop(name)
    return plain | {"network": network, "precision": config.arithmetic}


@pytest.mark.parametrize("suite", STEPS)
def test_a_released_file_is_our_recipe(suite):
    theirs, notes = translate(released(suite))
    ours = TrainConfig.build(load_yaml(CONFIGS / f"rdvla_{suite}.yaml"))
    assert settled(TrainConfig.build(theirs)) == settled(ours)
    assert notes == []
    assert theirs["data"]["root"].startswith("data/libero/libero_")


def test_calvins_recipe_is_the_released_one_on_other_data():
    """No file for CALVIN was released; a released file that names its dataset gets CALVIN's gripper."""
    theirs = released("long", data={"data_root_dir": "data", "dataset_name": "calvin_abc_rlds", "image_aug": True})
    ours = TrainConfig.build(load_yaml(CONFIGS / "rdvla_calvin.yaml"))
    assert settled(TrainConfig.build(translate(theirs)[0])) == settled(ours)
    assert ours.data.gripper == CALVIN.gripper
    assert derived_gripper({ours.data.name: statistics()}) == CALVIN.gripper, "it loads with its own convention"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("tiny_*.yaml")), ids=lambda path: path.stem)
def test_our_files_are_left_alone(path):
    values = load_yaml(path)
    assert translate(values) == (values, [])
    assert TrainConfig.build(values).arithmetic == "float32"


def test_a_released_key_over_a_file_of_ours_changes_what_it_says_alone():
    values = load_yaml(CONFIGS / "tiny_libero.yaml")
    over = apply_overrides(values, ["--wandb_project=mine", "--use_wandb=true"])
    found, notes = translate(over, complete=is_released(values))
    assert notes == []
    assert found == values | {"project": "mine", "trackers": ["tensorboard", "wandb"]}


@pytest.mark.parametrize("key", ["output_dir", "run_name", "data.data_root_dir", "data.dataset_name"])
def test_a_released_key_that_a_file_of_ours_says_otherwise_is_refused(key):
    values = load_yaml(CONFIGS / "tiny_libero.yaml")
    with pytest.raises(ConfigError, match=f"'{key}' of the released code stands beside"):
        translate(apply_overrides(values, [f"--{key}=mine"]), complete=is_released(values))


def test_a_silent_file_gets_the_released_defaults():
    values, _ = translate({"data": {"dataset_name": "calvin_abc_rlds"}, "run_name": "first"})
    config = TrainConfig.build(values)
    assert str(config.data.root) == "data/libero/calvin_abc_rlds"
    assert str(config.output) == "outputs/first"
    assert config.data.gripper == "open_is_positive"
    assert (config.model.head.recurrent_layers, config.model.head.mean_recurrence) == ((6, 23), 12)
    assert (config.max_steps, config.seed, config.optimizer.decay_at) == (200_000, 42, 200_000)


def test_released_choices_reach_ours():
    changes = {
        "model": {"lora_rank": 32, "vlm_path": "base"},
        "optimizer": {"use_muon": True, "muon_lr": 0.01, "muon_momentum": 0.9, "lr_warmup_steps": 500},
        "wandb_project": "mine",
        "wandb_log_freq": 7,
        "use_wandb": True,
        "use_val_set": True,
        "save_latest_only": True,
    }
    config = TrainConfig.build(translate(released("spatial", **changes))[0])
    assert config.model.lora is not None
    assert (config.model.lora.rank, str(config.model.base_vlm)) == (32, "base")
    optimizer = config.optimizer
    assert (optimizer.muon, optimizer.muon_learning_rate, optimizer.muon_momentum) == (True, 0.01, 0.9)
    assert (optimizer.warmup_steps, optimizer.warmup_start) == (500, 0.1)
    assert (config.project, config.log_freq, config.keep) == ("mine", 7, 1)
    assert config.trackers == ("tensorboard", "wandb")
    assert config.data.validation_fraction > 0


def test_without_adapters_and_with_our_keys_beside_theirs():
    values, _ = translate(released("goal", model={"use_lora": False}, precision="bfloat16"))
    config = TrainConfig.build(values)
    assert config.model.lora is None
    assert config.precision == "bfloat16"


def test_beside_weights_of_its_own_the_released_network_is_not_used_and_what_is_ours_is_kept():
    values, notes = translate(released("goal", model={"init_from": "checkpoint"}))
    config = TrainConfig.build(values)
    assert (str(config.model.init_from), config.model.base_vlm) == ("checkpoint", None)
    assert "'action_head.recurrent.recurrent_vlm_layers' is not used: the network comes from model.init_from." in notes
    ours = {"init_from": "checkpoint", "head": {"backprop_depth": 4}}
    values, notes = translate({"action_head": {"recurrent": {"mean_recurrence": 7}}, "model": ours})
    head = TrainConfig.build(values).model.head
    assert (head.mean_recurrence, head.backprop_depth, notes) == (7, 4, [])
    values, _ = translate({"data": {"dataset_name": "x"}, "model": {"init_from": "checkpoint"}})
    assert TrainConfig.build(values).model.head.mean_recurrence is None, "the checkpoint's own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"init_from": "x", "head": {"chunk_size": 4}}}, "model.head.chunk_size cannot be changed"),
        ({"model": {"init_from": "x", "base_vlm": "y"}}, "model.base_vlm cannot be given"),
        ({"model": {"layers": "12_24-24_24", "head": {"coda_layers": [3]}}}, "exclude each other"),
        ({"model": {"use_lora": False, "lora": {"rank": 8}}}, "model.lora.rank describes the adapters"),
        ({"optimizer": {"schedule": "cosine", "decay_at": 5}}, "decay_at"),
    ],
)
def test_what_contradicts_itself_in_our_keys_is_refused_beside_theirs_too(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.build(translate(released("goal", **changes))[0])


def test_another_schedule_needs_no_step_of_decay():
    config = TrainConfig.build(translate(released("goal", optimizer={"schedule": "cosine"}))[0])
    assert (config.optimizer.schedule, config.optimizer.decay_at) == ("cosine", None)


def test_what_means_nothing_here_is_said():
    _, notes = translate(released("goal", resume=True, val_time_limit=180))
    assert len(notes) == 2
    assert "continues" in notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action_head": {"recurrent": {"mean_recurence": 3}}},
            r"Did you mean 'action_head.recurrent.mean_recurrence'",
        ),
        ({"model": {"use_film": True}}, "'model.use_film' = True .* not supported"),
        ({"action_head": {"type": "diffusion"}}, "only 'recurrent'"),
    ],
)
def test_what_is_not_supported_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        translate(released("goal", **changes))


def test_a_typing_mistake_elsewhere_is_still_an_error():
    values, _ = translate(released("goal", optimizer={"learning_rat": 1e-4}))
    with pytest.raises(ConfigError, match="Did you mean 'learning_rate'"):
        TrainConfig.build(values)


@pytest.mark.parametrize("name", LAYERS)
def test_named_layers_fit_the_released_network(name):
    values = released("goal", model={"layers": name})
    values.pop("action_head")
    config = TrainConfig.build(translate(values)[0])
    head = changed(preset_network("rdvla_0_5b", vocab_size=1), config.model.changes).head
    assert (head.prelude_layers, head.recurrent_layers, head.coda_layers) == LAYERS[name]


def test_layers_by_an_unknown_name_or_twice():
    base = {"output": "x", "data": {"root": "y"}, "max_steps": 1}
    with pytest.raises(ConfigError, match="Did you mean '12_24-24_24'"):
        TrainConfig.build(base | {"model": {"layers": "12_24-24-24"}})
    with pytest.raises(ConfigError, match="exclude each other"):
        TrainConfig.build(base | {"model": {"layers": "24-24", "head": {"coda_layers": [2]}}})
