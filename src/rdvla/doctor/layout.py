"""The full-size network's tensors against the released list, without allocating any."""

from collections.abc import Mapping
from typing import Any

import torch

from rdvla.checkpoints import names
from rdvla.doctor.checks import Check, equal
from rdvla.model.config import rdvla_0_5b
from rdvla.model.rdvla import RDVLA

# The list also names the tied output layer, which released files leave out.
_TIED = "language_model.lm_head.weight"
_COUNTED = {
    "vision_dino": "vision.featurizer.",
    "vision_siglip": "vision.fused_featurizer.",
    "projector": "projector.",
    "language_model": "language.",
    "action_queries": "latent_tokens",
}


def check_vlm_layout(document: Mapping[str, Any], case: str) -> list[Check]:
    """Compare names, shapes and parameter counts of the full-size VLM with `real_layout.json`."""
    with torch.device("meta"):
        model = RDVLA(rdvla_0_5b())
    state = names.stored_state(model)
    found = {name: list(value.shape) for name, value in names.part(names.to_published(state), names.VLM).items()}
    expected = {name: shape for name, shape in document["tensors"].items() if name != _TIED}
    checks = [equal(case, f"names and shapes of {len(expected)} tensors", found, expected)]
    for label, prefix in _COUNTED.items():
        count = sum(value.numel() for name, value in state.items() if name.startswith(prefix))
        checks.append(equal(case, f"parameters of {label}", count, document["params"][label]))
    return checks
