"""The released layout, written: what the published code and `official.py` read."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from rdvla.checkpoints import names
from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.official import STATISTICS
from rdvla.checkpoints.official_beside import BESIDE, beside
from rdvla.checkpoints.official_config import PROJECTOR_RATIO, TOWER_NAMES, head_document
from rdvla.checkpoints.tensors import dtype_name, write_pt, write_safetensors
from rdvla.checkpoints.tokenizer_files import write_tokenizer
from rdvla.data.stats import save_statistics
from rdvla.errors import CheckpointError
from rdvla.files import replacing_folder
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig
from rdvla.model.config import QWEN_CHAT_PROMPT, RDVLAConfig

_END_OF_TEXT = 151643


def save_official(directory: Path, checkpoint: Checkpoint, *, replace: bool = False) -> None:
    """Write a checkpoint in the released layout, atomically; what it has no place for goes into `rdvla.json`.

    Args:
        directory: where to; must not exist (or be empty) unless `replace`.
        checkpoint: a network with the released kind of towers, prompt and Coda.
        replace: replace what is there.

    Raises:
        CheckpointError: the layout has no place for this network.
        StorageError: the directory exists, or the disk refuses.
    """
    model = checkpoint.model
    backbone = _require_released_kind(model.config)
    tensors = names.to_published({name: tensor.detach().cpu() for name, tensor in names.stored_state(model).items()})
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise CheckpointError(f"a checkpoint holds one dtype, found {sorted(map(dtype_name, dtypes))}; cast it first.")
    label = f"{'latest' if checkpoint.step is None else checkpoint.step}_checkpoint"
    with replacing_folder(directory, replace=replace) as draft:
        vlm = {name: tensor.contiguous() for name, tensor in names.part(tensors, names.VLM).items()}
        write_safetensors(draft / "model.safetensors", vlm)
        write_pt(draft / f"action_head--{label}.pt", _own(names.part(tensors, names.HEAD)))
        write_pt(draft / f"proprio_projector--{label}.pt", _own(names.part(tensors, names.PROPRIO)))
        _write(draft / f"action_head_config--{label}.json", head_document(model.config.head))
        _write(draft / "config.json", _vlm_document(backbone, dtype_name(dtypes.pop())))
        _write(draft / "preprocessor_config.json", _preprocessor_document(backbone.vision))
        _write(draft / "processor_config.json", {"processor_class": "PrismaticProcessor"})
        _write(
            draft / "generation_config.json",
            {"_from_model_config": True, "bos_token_id": _END_OF_TEXT, "eos_token_id": _END_OF_TEXT},
        )
        if said := beside(checkpoint, backbone):
            _write(draft / BESIDE, said)
        save_statistics(draft / STATISTICS, checkpoint.statistics)
        _drop_state_masks(draft / STATISTICS)
        write_tokenizer(draft, checkpoint.tokenizer)


def _require_released_kind(config: RDVLAConfig) -> PrismaticConfig:
    backbone = config.backbone
    problems = []
    if isinstance(backbone, PrismaticConfig):
        problems += _unread(backbone)
    else:
        problems.append(f"the backbone is '{backbone.kind}', not 'prismatic'")
    if config.prompt != QWEN_CHAT_PROMPT:
        problems.append("the prompt is not the released one")
    if config.cameras != ("primary", "wrist"):
        problems.append(f"cameras are {list(config.cameras)}, not ['primary', 'wrist']")
    if not config.head.coda_cross_attention:
        problems.append("the Coda has no cross-attention")
    if problems or not isinstance(backbone, PrismaticConfig):
        raise CheckpointError("the released layout cannot hold this network: " + "; ".join(problems) + ".")
    return backbone


def _unread(backbone: PrismaticConfig) -> list[str]:
    """Return what a reader would take for granted of a backbone, and is otherwise."""
    vision, released = backbone.vision, DinoSiglipConfig()
    usual = PROJECTOR_RATIO * (vision.dino.width + vision.siglip.width)
    unread = []
    if backbone.projector_width != usual:
        unread.append(f"projector_width is {backbone.projector_width}, not {usual}")
    for name, own, theirs in (("dino", vision.dino, released.dino), ("siglip", vision.siglip, released.siglip)):
        for field in ("layer_scale", "attention_pool"):
            if getattr(own, field) != getattr(theirs, field):
                unread.append(f"{name}.{field} is {getattr(own, field)}")
        if own.num_registers is None and theirs.num_registers is not None:
            unread.append(f"{name} has no registers")
    return unread


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detach tensors from a larger storage, which torch.save would write whole."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _vlm_document(backbone: PrismaticConfig, dtype: str) -> dict[str, Any]:
    language = backbone.language
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "hf_llm_id": "Qwen/Qwen2.5-0.5B",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [backbone.image_size] * 2,
        "llm_backbone_id": "qwen25-0_5b-extra",
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {},
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {
            "bos_token_id": _END_OF_TEXT,
            "eos_token_id": _END_OF_TEXT,
            "hidden_act": "silu",
            "hidden_size": language.hidden_size,
            "intermediate_size": language.mlp_width,
            "max_position_embeddings": 32768,
            "max_window_layers": language.num_layers,
            "model_type": "qwen2",
            "num_attention_heads": language.num_heads,
            "num_hidden_layers": language.num_layers,
            "num_key_value_heads": language.num_kv_heads,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            "use_sliding_window": False,
            "vocab_size": language.vocab_size,
        },
        "timm_model_ids": list(TOWER_NAMES),
        "timm_override_act_layers": [None, None],
        "torch_dtype": dtype,
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def _preprocessor_document(vision: DinoSiglipConfig) -> dict[str, Any]:
    side, towers = vision.image_size, (vision.dino, vision.siglip)
    return {
        "auto_map": {
            "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
            "AutoProcessor": "processing_prismatic.PrismaticProcessor",
        },
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, side, side]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": [list(tower.mean) for tower in towers],
        "processor_class": "PrismaticProcessor",
        "stds": [list(tower.std) for tower in towers],
        "tvf_crop_params": [{"output_size": [side, side]}] * 2,
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(tower.mean), "std": list(tower.std)} for tower in towers
        ],
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [side, side]}] * 2,
        "use_fused_vision_backbone": True,
    }


def _drop_state_masks(path: Path) -> None:
    """Remove the masks of states that normalise everything: released files have none."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for entry in document.values():
        if all(entry["proprio"]["mask"]):
            del entry["proprio"]["mask"]
    _write(path, document)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
