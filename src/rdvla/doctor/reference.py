"""Reference numbers that every installation carries: small networks filled by formula, one picture, one column.

`reference_values.json` was written by `compute()` after this code agreed with recordings of the published classes (see
`rdvla doctor --golden`). A later difference means that a library or an edit changed what is computed.
"""

import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rdvla.checkpoints.names import stored
from rdvla.data.images import PUBLISHED
from rdvla.data.stats import NormStats
from rdvla.doctor.checks import OUTPUT_LIMIT, Check, compare, compare_outputs, within
from rdvla.model.backbones.inline import Inline
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig, ViTConfig
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.decide import decide
from rdvla.model.depth import DepthSampler
from rdvla.model.language import LanguageConfig
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.stopping import make_criterion
from rdvla.stops import StopRule

RELATIVE_LIMIT = 2e-5
IMAGE_LIMIT = 0.02
"""Mean difference in grey levels: one level on 2 % of the values."""
STATISTICS_LIMIT = 1e-6

Values = NDArray[np.float64]


def check_reference() -> list[Check]:
    """Compare every built-in quantity with its stored numbers."""
    stored = stored_values()
    return [_check(name, found, stored[name]) for name, found in compute().items()]


def _check(name: str, found: Values, expected: list[float]) -> Check:
    part = name.partition(".")[0]
    if part == "image":
        return within("built-in", name, float(np.abs(found - expected).mean()), IMAGE_LIMIT)
    if part in ("network", "gradients"):
        return compare("built-in", name, found, expected, RELATIVE_LIMIT, relative=True)
    if name.startswith("head.depth_"):
        return compare_outputs("built-in", name, found, expected, int(name.removeprefix("head.depth_")))
    limit = {"statistics": STATISTICS_LIMIT, "scratchpad": OUTPUT_LIMIT}.get(part, 0.0)  # the others are whole numbers
    return compare("built-in", name, found, expected, limit)


def stored_values() -> dict[str, list[float]]:
    """Return the reference numbers by quantity."""
    text = resources.files("rdvla.doctor").joinpath("reference_values.json").read_text(encoding="utf-8")
    values: dict[str, list[float]] = json.loads(text)
    return values


def compute() -> dict[str, Values]:
    """Compute every quantity on this machine."""
    parts: tuple[Callable[[], Mapping[str, Any]], ...] = (_head, _network, _scratchpad, _sampler, _image, _statistics)
    return {name: np.asarray(value, dtype=np.float64) for part in parts for name, value in part().items()}


def wave(*shape: int, shift: float = 0.0, rate: float = 0.1234567) -> NDArray[np.float32]:
    """Return float32 numbers in [-1, 1] by formula: sin(k^2 x rate + shift) for k = 0, 1, 2, ..."""
    k = np.arange(math.prod(shape), dtype=np.float64)
    return np.sin(k * k * rate + shift).astype(np.float32).reshape(shape)


def fill_by_formula(module: nn.Module) -> None:
    """Set every parameter by formula: matrices at about 1.3 / sqrt(inputs), norms around 1, gates around 0.8."""
    for index, (name, parameter) in enumerate(sorted((stored(name), each) for name, each in module.named_parameters())):
        values = torch.from_numpy(wave(*parameter.shape, shift=float(index)))
        if parameter.ndim > 1 and "embed" not in name and "quer" not in name and "token" not in name:
            values = values * (1.3 * math.sqrt(2 / parameter[0].numel()))
        elif name.endswith("bias"):
            values = 0.1 * values
        elif "norm" in name or "gamma" in name or "scale_factor" in name or name.endswith("gate"):
            values = 0.8 + 0.2 * values
        with torch.no_grad():
            parameter.copy_(values)


def _head() -> dict[str, Any]:
    """Outputs at three depths, the stopping rule's trace, and gradients of a head with every kind of layer."""
    config = HeadConfig(
        hidden_dim=24,
        num_heads=2,
        prelude_layers=(0, 1),
        recurrent_layers=(1, 2),
        coda_layers=(2,),
        chunk_size=4,
        action_dim=3,
        mean_recurrence=6,
        backprop_depth=2,
    )
    head = RecurrentHead(config)
    fill_by_formula(head)
    contexts = {
        layer: Context(tensor(2, 5, 24, shift=10.0 + layer), tensor(2, 7, 24, shift=20.0 + layer)) for layer in range(3)
    }
    latents = tensor(2, 4, 24, shift=30.0)
    values: dict[str, Any] = {}
    with torch.no_grad():
        for depth in (1, 4, 12):
            output = head(contexts, latents, n_no_grad=depth, n_grad=0)
            values[f"head.depth_{depth}"] = output.flatten()[::3]
        rule = StopRule("action_mse", 5e-4, max_depth=24)
        decision = decide(head, head.condition(contexts), latents, make_criterion(rule), rule)
        values["head.stopping_depths"] = decision.num_recurrences
    loss = F.l1_loss(head(contexts, latents, n_no_grad=2, n_grad=2), tensor(2, 4, 3, shift=40.0))
    torch.autograd.backward(loss)
    norms = [(name, p.grad.norm()) for name, p in sorted(head.named_parameters()) if p.grad is not None]
    values["gradients.norms"] = torch.stack([norm for name, norm in norms if "gamma" not in name])
    return values


def _network() -> dict[str, Any]:
    """What a tiny complete network hands to its head, for two prompts of different length."""
    tower: dict[str, Any] = {"depth": 3, "num_heads": 2, "mean": (0.48, 0.45, 0.4), "std": (0.23, 0.22, 0.225)}
    language = LanguageConfig(vocab_size=64, hidden_size=24, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=48)
    vision = DinoSiglipConfig(
        image_size=28,
        dino=ViTConfig(width=16, mlp_width=32, num_registers=4, layer_scale=True, **tower),
        siglip=ViTConfig(width=12, mlp_width=20, attention_pool=True, **tower),
    )
    config = RDVLAConfig(
        backbone=PrismaticConfig(vision=vision, projector_width=40, language=language, num_latent_tokens=3),
        head=HeadConfig(hidden_dim=24, num_heads=2, prelude_layers=(1,), recurrent_layers=(2, 3), coda_layers=(2,)),
    )
    model = RDVLA(config)
    fill_by_formula(model)
    images = torch.from_numpy(((wave(2, 2, 28, 28, 3, rate=0.0345678) + 1) * 127.5).astype(np.uint8))
    ids = (torch.arange(14).reshape(2, 7) * 5) % 64
    inputs = Inputs(images, ids, torch.tensor([7, 5]), tensor(2, 8, shift=50.0))
    with torch.no_grad():
        assert isinstance(model.backbone, Inline)
        features = model.backbone.vision(images.flatten(0, 1))
        contexts = model.encode(inputs)
        actions = model.head(contexts, tensor(2, 8, 24, shift=60.0), n_no_grad=3, n_grad=0)
    values: dict[str, Any] = {
        "network.towers": features.flatten()[::13],
        "network.projector": model.backbone.projector(features).detach().flatten()[::13],
        "network.actions": actions.flatten()[::5],
    }
    for layer, context in contexts.items():
        values[f"network.vision_{layer}"] = context.vision.flatten()[::31]
        values[f"network.latents_{layer}"] = context.latents.flatten()[::17]
    return values


def _scratchpad() -> dict[str, Any]:
    """What seed 0 draws: the first numbers, and one number that depends on all, of which eight are drawn again."""
    config = HeadConfig(hidden_dim=128, num_heads=2, prelude_layers=(0,), recurrent_layers=(0,), coda_layers=())
    drawn = RecurrentHead(config).init_latents(1, torch.Generator().manual_seed(0)).flatten()
    return {
        "scratchpad.first_of_seed_0": drawn[:16],
        "scratchpad.all_of_seed_0": (drawn * tensor(len(drawn), shift=70.0)).double().sum().reshape(1),
    }


def _sampler() -> dict[str, Any]:
    """Training depths of seed 0."""
    sampler, generator = DepthSampler(32, backprop_depth=8), torch.Generator().manual_seed(0)
    return {"sampler.mean_32": [sampler.sample(generator) for _ in range(16)]}


def _image() -> dict[str, Any]:
    """Pixels of a picture with slopes and edges after the published path."""
    y, x = np.mgrid[0:256, 0:256]
    channels = [127.5 + 120 * np.sin(0.07 * x + 0.05 * y + c) * np.cos(0.03 * y - 0.02 * c * x) for c in range(3)]
    edges = np.where((x // 5 + y // 7) % 2 == 0, 0.6, 1.0)[:, :, None]
    picture = (np.stack(channels, axis=2) * edges).round().astype(np.uint8)
    return {"image.published_path": PUBLISHED.prepare(picture)[::16, ::16].flatten()}


def _statistics() -> dict[str, Any]:
    """Percentiles of a column, and what they make of values inside and outside."""
    stats = NormStats.compute(wave(200, 3) * np.array([1.0, 5.0, 0.01], np.float32), mask=[True, True, False])
    probes = np.array([[0.5, -7.0, 0.3], [-2.0, 3.0, -0.2]], np.float32)
    return {
        "statistics.percentiles": np.concatenate([stats.q01, stats.q99]),
        "statistics.normalised": stats.normalise(probes).flatten(),
        "statistics.unnormalised": stats.unnormalise(probes).flatten(),
    }


def tensor(*shape: int, shift: float) -> Tensor:
    """Return `wave` as a tensor."""
    return torch.from_numpy(wave(*shape, shift=shift))
