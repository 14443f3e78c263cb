"""The released code's configuration files, understood as they are: one table from their keys to ours."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rdvla.checkpoints.official_config import HEAD_FIELDS
from rdvla.data.augmentation import PUBLISHED_AUGMENTATION, Augmentation
from rdvla.embodiment import CALVIN
from rdvla.errors import ConfigError, suggest
from rdvla.train.config import OF_TRAINING

Flat = dict[str, Any]

_HEAD = "action_head.recurrent."

# Released key -> ours, the value as it is. Keys that are called the same here and there are not listed.
_RENAMED: Mapping[str, str] = {
    **{_HEAD + theirs: f"model.head.{ours}" for theirs, ours in HEAD_FIELDS.items()},
    "model.vlm_path": "model.base_vlm",
    "model.config_path": "model.tokenizer",
    "model.lora_rank": "model.lora.rank",
    "optimizer.lr_warmup_steps": "optimizer.warmup_steps",
    "optimizer.num_steps_before_decay": "optimizer.decay_at",
    "optimizer.use_muon": "optimizer.muon",
    "optimizer.muon_lr": "optimizer.muon_learning_rate",
    "val_freq": "validate_freq",
    "wandb_project": "project",
    "wandb_log_freq": "log_freq",
}

# Released key -> ours with the value translated.
_TRANSLATED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "data.image_aug": ("data.augmentation", lambda on: asdict(PUBLISHED_AUGMENTATION if on else Augmentation())),
    "use_val_set": ("data.validation_fraction", lambda on: 0.04 if on else 0.0),
    "use_wandb": ("trackers", lambda on: ["tensorboard", "wandb"] if on else ["tensorboard"]),
    "save_latest_only": ("keep", lambda on: 1 if on else 1_000_000),
}

# Released key -> the one value that means what we do.
_FIXED: Mapping[str, Any] = {
    "action_head.type": "recurrent",
    "model.use_minivlm": True,
    "model.num_images_in_input": 2,
    "model.use_proprio": True,
    "model.use_film": False,
    "model.lora_dropout": 0.0,
    "optimizer.muon_ns_steps": 5,
    "data.dataset_fraction": 1.0,
    "merge_lora": True,
    "resume_path": None,
    "resume_step": None,
}

# Released key -> why it needs no counterpart.
_NEEDLESS: Mapping[str, str] = {
    "data.shuffle_buffer_size": "every epoch is a permutation of all frames",
    "val_time_limit": "validation takes validation_samples samples",
    "wandb_entity": "set WANDB_ENTITY instead",
    "resume": "the same command always continues its output folder",
}

# Ours <- the released keys that say it together.
_COMBINED: Mapping[str, tuple[str, ...]] = {
    "data.root": ("data.data_root_dir", "data.dataset_name"),
    "output": ("output_dir", "run_name"),
    "model.lora": ("model.use_lora",),
}
_KNOWN = (*_RENAMED, *_TRANSLATED, *_FIXED, *_NEEDLESS, *(key for keys in _COMBINED.values() for key in keys))

# What the released code does where a file is silent.
_DEFAULTS: Mapping[str, Any] = {
    "model.preset": "rdvla_0_5b",
    "model.base_vlm": "pretrained_models/prism-qwen25-extra-dinosiglip-224px-0_5b",
    "model.tokenizer": "pretrained_models/configs",
    "model.lora.rank": 64,
    "model.head.prelude_layers": [],
    "model.head.recurrent_layers": [6, 23],
    "model.head.coda_layers": [],
    "model.head.mean_recurrence": 12,
    "data.sampling": "published",
    "data.stored_as_jpeg": True,
    "data.augmentation": asdict(PUBLISHED_AUGMENTATION),
    "data.state_noise": 0.0,
    "data.validation_fraction": 0.0,
    "optimizer.learning_rate": 2e-4,
    "optimizer.decayed": "all",
    "optimizer.warmup_steps": 0,
    "optimizer.warmup_start": 0.1,
    "optimizer.schedule": "step",
    "optimizer.decay_at": 200_000,
    "optimizer.final_fraction": 0.1,
    "optimizer.muon_learning_rate": 2e-2,
    "optimizer.muon_weight_decay": 0.1,
    "batch_size": 16,
    "grad_accumulation_steps": 2,
    "max_steps": 200_000,
    "save_freq": 5000,
    "keep": 1_000_000,
    "validate_freq": 10_000,
    "log_freq": 10,
    "ema_decay": 0.0,
    "num_workers": 8,
    "seed": 42,
}


def is_released(values: Mapping[str, Any]) -> bool:
    """Say whether a configuration holds any of the released code's own keys."""
    return any(key in _KNOWN for key in _flat(values))


def translate(values: Mapping[str, Any], *, complete: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration in our keys, and notes about released keys that mean nothing here.

    One that holds none of the released code's own keys is returned as it is; our keys may stand beside theirs.

    Args:
        values: the configuration.
        complete: the file is the released code's, so what it leaves out is at the released defaults. Without, only the
            keys that are there are translated.

    Raises:
        ConfigError: a value that is not supported, or an unknown key below `action_head`.
    """
    given = _flat(values)
    if not is_released(values):
        return dict(values), []
    needless = _needless(given)
    result: Flat = {key: value for key, value in _DEFAULTS.items() if key not in needless} if complete else {}
    if complete and _dataset(given).startswith("calvin"):
        result["data.gripper"] = CALVIN.gripper
    if complete or given.keys() & set(_COMBINED["data.root"]):
        result["data.root"] = f"{given.get('data.data_root_dir', 'data/libero')}/{_dataset(given)}"
    if complete or given.keys() & set(_COMBINED["output"]):
        result["output"] = f"{given.get('output_dir', 'outputs')}/{given.get('run_name') or _dataset(given)}"
    for ours, parts in _COMBINED.items():
        if not complete and ours in given and (both := sorted(given.keys() & set(parts))):
            raise ConfigError(f"'{both[0]}' of the released code stands beside '{ours}'; give {ours} alone.")
    notes = []
    for key, value in given.items():
        if reason := needless.get(_RENAMED.get(key, "")):
            notes.append(f"'{key}' is not used: {reason}.")
        elif key in _RENAMED:
            result[_RENAMED[key]] = value
        elif key in _TRANSLATED:
            ours, read = _TRANSLATED[key]
            result[ours] = read(value)
        elif key in _FIXED and value != _FIXED[key]:
            raise ConfigError(f"'{key}' = {value!r} of the released code is not supported, only {_FIXED[key]!r}.")
        elif key in _NEEDLESS:
            notes.append(f"'{key}' is not used: {_NEEDLESS[key]}.")
        elif key.startswith("action_head.") and key not in _KNOWN:
            theirs = [known for known in _KNOWN if known.startswith("action_head.")]
            raise ConfigError(f"unknown key '{key}'.{suggest(key, theirs)}")
        elif key not in _KNOWN:
            result[key] = value
    return _nested(result), notes


def _dataset(given: Flat) -> str:
    return str(given.get("data.dataset_name", "libero_spatial_no_noops"))


def _needless(given: Flat) -> dict[str, str]:
    """Return the keys of ours whose released values and defaults mean nothing beside what was given, and why.

    Raises:
        ConfigError: adapters are switched off and described.
    """
    ours = {*_DEFAULTS, *_RENAMED.values()}
    needless = {}
    if not given.get("model.use_lora", True):
        if described := [key for key in given if key.startswith("model.lora.")]:
            raise ConfigError(f"{described[0]} describes the adapters that model.use_lora switches off; keep one.")
        needless["model.lora.rank"] = "model.use_lora is off"
    if given.get("model.lora", True) is None:
        needless["model.lora.rank"] = "model.lora is null"
    if "model.layers" in given:
        layers = ("prelude_layers", "recurrent_layers", "coda_layers")
        needless |= dict.fromkeys((f"model.head.{name}" for name in layers), "model.layers names the layers")
    if "model.init_from" in given:
        free = {f"model.head.{name}" for name in OF_TRAINING} & {_RENAMED.get(key, key) for key in given}
        network = {"model.base_vlm", "model.tokenizer", *(key for key in ours if key.startswith("model.head."))}
        needless |= dict.fromkeys(network - free, "the network comes from model.init_from")
    if given.get("optimizer.schedule", "step") != "step":
        needless["optimizer.decay_at"] = "optimizer.schedule is another one"
    return needless


def _flat(values: Mapping[str, Any], prefix: str = "") -> Flat:
    flat: Flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _nested(flat: Flat) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested
