"""A recorded case of the whole network: towers, projector, language model, slices, actions, a training batch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.official import is_official, load_official
from rdvla.checkpoints.official_beside import BESIDE
from rdvla.checkpoints.tensors import only_tensors, read_json, read_pt, read_safetensors
from rdvla.data.stats import select_statistics
from rdvla.doctor.checks import Check, compare, compare_outputs, equal, orientation, unread, within
from rdvla.doctor.golden_head import BFLOAT16_LIMIT, METRIC_LIMIT
from rdvla.errors import CheckpointError
from rdvla.model.backbones.inline import Inline
from rdvla.model.backbones.prismatic import DinoSiglip
from rdvla.model.decide import HeadOutput, decide
from rdvla.model.prompt import Prompt
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.stopping import make_criterion
from rdvla.policies.io import PolicyIO
from rdvla.stops import StopRule

RELATIVE_LIMIT = 1e-4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class VLMCase:
    """A recorded checkpoint with its inputs.

    Attributes:
        document: `golden.json`.
        checkpoint: the tiny checkpoint; its network is cast to float32.
        recorded: the tensors of `golden.safetensors`.
        read: keys of `recorded` that were compared or used.
    """

    document: dict[str, Any]
    checkpoint: Checkpoint
    recorded: dict[str, Tensor]
    name: str = "vlm"
    read: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return self.recorded[key]

    @property
    def model(self) -> RDVLA:
        """The network."""
        return self.checkpoint.model

    @property
    def backbone(self) -> Inline:
        """Its backbone, of the released kind."""
        backbone = self.model.backbone
        assert isinstance(backbone, Inline)
        return backbone

    def images(self) -> Tensor:
        """Return both recorded images, uint8 `[1, 2, H, W, 3]`."""
        return torch.stack([self["in.image_primary_u8"], self["in.image_wrist_u8"]]).unsqueeze(0)

    def inputs(self) -> Inputs:
        """Return the recorded decision's inputs."""
        ids = self["in.input_ids"]
        state = self["in.proprio_normalised"].float().unsqueeze(0)
        return Inputs(self.images(), ids, torch.tensor([ids.shape[1]]), state)


def check_vlm(directory: Path) -> list[Check]:
    """Run the case of a `vlm/` directory."""
    case = load_vlm_case(directory)
    checks = [*_words(case), *_vision(case), *_language(case), *_actions(case, "fp32"), *_normalisation(case)]
    if "train.input_ids" in case.recorded:
        checks += _training(case)
    tokens = directory / "tokens.json"
    if tokens.is_file():
        checks += check_tokens(read_json(tokens), case.checkpoint, "vlm/tokens")
    checks += _prefixed_variant(directory, case)
    case.model.to(torch.bfloat16)
    checks += _actions(case, "bf16")
    return [*checks, *unread(case.name, set(case.recorded) - case.read)]


def load_vlm_case(directory: Path) -> VLMCase:
    """Read a case; the tower sizes come from `rdvla.json` beside the weights or from `golden.json`.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    document = read_json(directory / "golden.json")
    found = [path for path in sorted(directory.iterdir()) if path.is_dir() and is_official(path)]
    if len(found) != 1:
        raise CheckpointError(f"'{directory}' must hold one checkpoint directory, found {len(found)}.")
    towers = None if (found[0] / BESIDE).is_file() else document.get("tiny_vision")
    checkpoint = load_official(found[0], towers=towers)
    checkpoint.model.float()
    return VLMCase(document, checkpoint, read_safetensors(directory / "golden.safetensors"))


def check_tokens(document: Mapping[str, Any], checkpoint: Checkpoint, case: str) -> list[Check]:
    """Compare prompt ids of recorded tasks and ids of single strings with `tokens.json`."""
    prompt = Prompt(checkpoint.tokenizer, checkpoint.model.config.prompt)
    checks = [equal(case, f"ids of '{task}'", prompt.encode(task), ids) for task, ids in document["input_ids"].items()]
    for text, ids in document.get("single", {}).items():
        found = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
        checks.append(equal(case, f"ids of {text!r}", found, ids))
    return checks


def _words(case: VLMCase) -> list[Check]:
    prompt = Prompt(case.checkpoint.tokenizer, case.model.config.prompt)
    checks = [equal(case.name, "prompt ids", prompt.encode(case.document["task"]), case["in.input_ids"][0].tolist())]
    case.read |= {"in.attention_mask", "mid.multimodal_attention_mask"}  # all ones: one sample, no padding
    return checks


@torch.no_grad()
def _vision(case: VLMCase) -> list[Check]:
    """Compare pixels, both towers, and the projected patches; both images go through in one call."""
    backbone, images = case.backbone, case.images()[0]
    assert isinstance(backbone.vision, DinoSiglip)
    scaled = images.float() / 255
    towers = (backbone.vision.featurizer, backbone.vision.fused_featurizer)
    pixels = torch.cat([tower.pixels(image.unsqueeze(0)) for image in scaled for tower in towers], dim=1)
    features = backbone.vision(images)
    found = {
        "in.pixel_values": pixels,
        "mid.patch_features_dino_primary": towers[0](scaled)[:1],
        "mid.patch_features_siglip_primary": towers[1](scaled)[:1],
        "mid.patch_features": features.flatten(0, 1).unsqueeze(0),
        "mid.projected_patches": backbone.projector(features).flatten(0, 1).unsqueeze(0),
    }
    return _relative(case, found)


@torch.no_grad()
def _language(case: VLMCase) -> list[Check]:
    """Compare the sequence, every hidden state, and what the head gets.

    Our sequence ends before the last latent token: neither it nor the stop token after it is read by anybody.
    """
    model, inputs = case.model, case.inputs()
    sequence, _ = case.backbone.assemble(inputs.images, inputs.ids, inputs.lengths)
    length = sequence.shape[1]
    found: dict[str, Tensor] = {"mid.multimodal_embeddings": sequence}
    recorded = [key for key in case.recorded if re.fullmatch(r"mid\.hidden_states\.\d+", key)]
    states = case.backbone.language(sequence, [int(key.rpartition(".")[2]) for key in recorded])
    found |= {key: states[int(key.rpartition(".")[2])] for key in recorded}
    checks = _relative(case, found, crop=length)
    num_latents = model.config.backbone.num_latent_tokens
    for layer, context in model.encode(inputs).items():
        parts = {
            f"mid.head_h_t layer {layer}": (context.vision, case["mid.head_h_t"][:, layer]),
            f"mid.head_h_a layer {layer}": (context.latents[:, :num_latents], case["mid.head_h_a"][:, layer]),
            f"mid.proprio_features layer {layer}": (context.latents[:, num_latents], case["mid.proprio_features"]),
        }
        checks += [
            compare(case.name, key, ours, theirs, RELATIVE_LIMIT, relative=True)
            for key, (ours, theirs) in parts.items()
        ]
    case.read |= {key for key in case.recorded if key.startswith("bf16.hidden_states.")}
    return checks


@torch.no_grad()
def _actions(case: VLMCase, precision: str) -> list[Check]:
    """Compare normalised and final actions of every recorded depth and stopping rule."""
    dtype = DTYPES[precision]
    conditioning = case.model.head.condition(case.model.encode(case.inputs()))
    checks = []
    statistics = select_statistics(case.checkpoint.statistics, case.document.get("unnorm_key"))
    start = f"out.{precision}.normalised_"
    for key in [key for key in case.recorded if key.startswith(start)]:
        label = key.removeprefix(start)
        expected = case.document.get(f"{precision}.{label}", {})
        rule = _rule(label, expected)
        latents = case["in.S0"].to(dtype)
        decision = decide(case.model.head, conditioning, latents, make_criterion(rule, whole_batch=True), rule)
        checks += _decision(case, key, precision, decision, expected)
        actions_key = f"out.{precision}.actions_{label}"
        if actions_key in case.recorded:
            found = statistics.action.unnormalise(decision.actions[0].float().numpy())
            if precision == "fp32":
                depth = int(decision.num_recurrences[0])
                checks.append(compare_outputs(case.name, actions_key, found, case[actions_key], depth))
            else:
                checks.append(orientation(case.name, actions_key, found, case[actions_key], BFLOAT16_LIMIT))
    return checks


def _decision(
    case: VLMCase, key: str, precision: str, decision: HeadOutput, expected: Mapping[str, Any]
) -> list[Check]:
    if precision != "fp32":
        return [orientation(case.name, key, decision.actions.float(), case[key], BFLOAT16_LIMIT)]
    checks = [compare_outputs(case.name, key, decision.actions, case[key], int(decision.num_recurrences[0]))]
    if expected:
        metric = expected["metric"]
        allowed = max(METRIC_LIMIT * abs(metric), 1e-6)
        checks.append(equal(case.name, f"{key} iterations", int(decision.num_recurrences[0]), expected["actual_iter"]))
        checks.append(within(case.name, f"{key} metric", abs(decision.traces[0][-1] - metric), allowed))
    return checks


def _rule(label: str, expected: Mapping[str, Any]) -> StopRule:
    if fixed := re.fullmatch(r"(?:default_)?r(\d+)", label):
        return StopRule.fixed(int(fixed.group(1)))
    name = {"kl": "action_mse", "cos": "cosine"}[label]
    return StopRule(name, float(expected["thr"]), max_depth=int(expected.get("max_iter", 32)))


def _normalisation(case: VLMCase) -> list[Check]:
    found = PolicyIO.of(case.checkpoint, case.document.get("unnorm_key")).state(case["in.proprio_raw"].numpy())
    return [compare(case.name, "in.proprio_normalised", found, case["in.proprio_normalised"], 1e-6)]


@torch.no_grad()
def _training(case: VLMCase) -> list[Check]:
    """Compare a right-padded batch of two: slices, prediction and loss. Sample 1 has the two images swapped."""
    model, num_latents = case.model, case.model.config.backbone.num_latent_tokens
    ids, mask = case["train.input_ids"], case["train.attention_mask"]
    lengths = mask.sum(dim=1).long() - num_latents
    images = torch.cat([case.images(), case.images().flip(1)])
    inputs = Inputs(images, ids[:, : int(lengths.max())], lengths, case["train.proprio"].float())
    contexts = model.encode(inputs)
    starts = [first + 1 for first in case.document["train"]["mask_first_index"]]
    checks = [equal(case.name, "train prompt lengths", lengths.tolist(), starts)]
    for layer, context in contexts.items():
        found = {f"train.head_h_a layer {layer}": (context.latents[:, :num_latents], case["train.head_h_a"][:, layer])}
        if f"train.head_h_t.{layer}" in case.recorded:
            found[f"train.head_h_t layer {layer}"] = (context.vision, case[f"train.head_h_t.{layer}"])
        checks += [
            compare(case.name, key, ours, theirs, RELATIVE_LIMIT, relative=True)
            for key, (ours, theirs) in found.items()
        ]
    for key in [key for key in case.recorded if re.fullmatch(r"train\.pred_r\d+", key)]:
        depth = int(key.rpartition("r")[2])
        predicted = model.head(contexts, case["train.S0"], n_no_grad=0, n_grad=depth)
        checks.append(compare_outputs(case.name, key, predicted, case[key], depth))
        loss = F.l1_loss(predicted, case["train.actions"]).reshape(1)
        checks.append(compare_outputs(case.name, f"train.loss_r{depth}", loss, case[f"train.loss_r{depth}"], depth))
    case.read.add("train.labels")  # where the targets are; the lengths above say the same
    return checks


def _prefixed_variant(directory: Path, case: VLMCase) -> list[Check]:
    """Compare a head file written with the `module.` prefix with the one without."""
    files = sorted(directory.glob("variant_ddp_prefix/action_head--*.pt"))
    plain = sorted(path for path in directory.glob("*/action_head--*.pt") if path not in files)
    if not files or not plain:
        return []
    pair = [only_tensors(read_pt(path), str(path)) for path in (files[0], plain[0])]
    same = pair[0].keys() == pair[1].keys() and all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
    return [equal(case.name, "head file with 'module.' prefix", same, True)]


def _relative(case: VLMCase, found: Mapping[str, Tensor], *, crop: int | None = None) -> list[Check]:
    return [
        compare(case.name, key, value, case[key][:, :crop], RELATIVE_LIMIT, relative=True)
        for key, value in found.items()
        if key in case.recorded
    ]
