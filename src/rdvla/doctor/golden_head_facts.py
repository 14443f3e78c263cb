"""Recorded facts about the full-size head: names and shapes, initialisation, the depth distribution."""

from collections.abc import Mapping
from typing import Any

import torch

from rdvla.checkpoints import names
from rdvla.checkpoints.official_config import head_config
from rdvla.doctor.checks import Check, compare, equal, within
from rdvla.model.config import HeadConfig
from rdvla.model.depth import DepthSampler
from rdvla.model.projector import StateProjector
from rdvla.model.recurrent import RecurrentHead

SPREAD_LIMIT = 0.03
"""Relative: a matrix of 10^5 draws or more has its deviation to well within this."""

NUM_DRAWS, DRAWS_LIMIT = 4000, 1.0


def check_layout(document: Mapping[str, Any], case: str) -> list[Check]:
    """Compare names, shapes and parameter counts of head and state projector with `real_layout.json`."""
    config = head_config(document["config"], state_dim=_state_dim(document), source="real_layout.json")
    with torch.device("meta"):
        head, projector = RecurrentHead(config), StateProjector(config.state_dim, config.hidden_dim)
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    tensors |= {f"state_projector.{name}": value for name, value in projector.state_dict().items()}
    published = names.to_published(tensors)
    checks = []
    for key, prefix in (("action_head", names.HEAD), ("proprio_projector", names.PROPRIO)):
        if key in document:
            found = {name: list(value.shape) for name, value in names.part(published, prefix).items()}
            expected = {name.removeprefix("module."): entry["shape"] for name, entry in document[key].items()}
            checks.append(equal(case, f"{key}: names and shapes of {len(expected)} tensors", found, expected))
    for key, module in (("n_params_head", head), ("n_params_proprio_projector", projector)):
        if key in document:
            checks.append(equal(case, key, sum(value.numel() for value in module.parameters()), document[key]))
    return checks


def check_initialisation(document: Mapping[str, Any], case: str) -> list[Check]:
    """Compare deviation and bounds of a freshly drawn head with `real_init_statistics.json`."""
    torch.manual_seed(0)
    head = RecurrentHead(HeadConfig())
    drawn = names.part(
        names.to_published({f"head.{name}": value for name, value in head.state_dict().items()}), names.HEAD
    )
    worst_spread = worst_bound = 0.0
    for name, expected in document.items():
        values = drawn[name].float()
        largest = float(values.abs().max())
        worst_bound = max(worst_bound, abs(largest - expected["absmax"]) / max(expected["absmax"], 1e-12, largest))
        if expected["std"]:
            worst_spread = max(worst_spread, abs(float(values.std()) / expected["std"] - 1))
        elif expected["std"] == 0:
            worst_spread = max(worst_spread, float(values.std()))
    return [
        equal(case, "parameters drawn", sorted(drawn), sorted(document)),
        within(case, "deviation of every parameter (relative)", worst_spread, SPREAD_LIMIT),
        within(case, "largest value of every parameter (relative)", worst_bound, SPREAD_LIMIT),
    ]


def check_sampler(document: Mapping[str, Any], case: str) -> list[Check]:
    """Compare the training depths drawn from one seed, and their distribution, with `sampler.json`."""
    checks = []
    for label, expected in document.items():
        sampler = DepthSampler(int(label.removeprefix("mean_recurrence_")), backprop_depth=8)
        generator = torch.Generator().manual_seed(0)
        first = expected["seed0_first_64"]
        draws = [sampler.sample(generator) for _ in range(NUM_DRAWS)]
        checks.append(equal(case, f"{label}: first {len(first)} draws of seed 0", draws[: len(first)], first))
        values = torch.tensor(draws, dtype=torch.float64)
        found, recorded = [float(values.mean()), float(values.std())], [expected["mean"], expected["std"]]
        checks.append(compare(case, f"{label}: mean and deviation of {NUM_DRAWS} draws", found, recorded, DRAWS_LIMIT))
    return checks


def _state_dim(document: Mapping[str, Any]) -> int:
    projector = document.get("proprio_projector", {})
    shapes = [entry["shape"] for name, entry in projector.items() if name.endswith("fc1.weight")]
    return int(shapes[0][1]) if shapes else 8
