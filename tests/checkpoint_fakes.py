"""Small complete checkpoints: one of our laptop kind, one of the released kind."""

import numpy as np
import torch

from rdvla.checkpoints import Checkpoint
from rdvla.data.images import ImagePath
from rdvla.data.stats import DatasetStatistics, NormStats
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig, ViTConfig
from rdvla.model.backbones.tiny import ConvConfig, TinyConfig
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.language import LanguageConfig
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.types import ActionConvention

TOWER = {"num_heads": 2, "mean": (0.484375, 0.455078125, 0.40625), "std": (0.228515625, 0.2236328125, 0.224609375)}
INSTRUCTIONS = ["put the milk in the basket", "pick up the black bowl and place it on the plate"]


def head(**changes):
    return HeadConfig(
        **{
            "hidden_dim": 16,
            "num_heads": 2,
            "prelude_layers": (1,),
            "recurrent_layers": (2, 2),
            "coda_layers": (2,),
            "chunk_size": 4,
        }
        | changes
    )


def language(vocab_size):
    return LanguageConfig(
        vocab_size=vocab_size, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=24, rope_theta=1e4
    )


def laptop_config(vocab_size, **changes):
    backbone = TinyConfig(
        vision=ConvConfig(image_size=32, channels=(8, 8), norm_groups=4),
        projector_width=16,
        language=language(vocab_size),
        num_latent_tokens=3,
    )
    return RDVLAConfig(backbone=backbone, head=head(**changes), prompt="{instruction}")


def released_config(vocab_size, **changes):
    vision = DinoSiglipConfig(
        image_size=28,
        dino=ViTConfig(depth=3, width=8, mlp_width=32, num_registers=4, layer_scale=True, **TOWER),
        siglip=ViTConfig(
            depth=2, width=12, num_heads=2, mlp_width=44, attention_pool=True, mean=(0.5,) * 3, std=(0.5,) * 3
        ),
    )
    backbone = PrismaticConfig(vision=vision, projector_width=80, language=language(vocab_size), num_latent_tokens=5)
    return RDVLAConfig(backbone=backbone, head=head(**changes))


def statistics(action_dim=7, state_dim=8):
    generator = np.random.default_rng(0)
    mask = [True] * (action_dim - 1) + [False]
    actions = np.clip(generator.normal(size=(50, action_dim)), -1, 1).astype(np.float32)
    return DatasetStatistics(
        NormStats.compute(actions, mask),
        NormStats.compute(generator.normal(size=(50, state_dim)).astype(np.float32)),
        num_transitions=50,
        num_trajectories=2,
    )


def make(kind="laptop", *, dtype=torch.float32, seed=0, step=12, gripper="open_is_negative", **changes):
    tokenizer = train_tokenizer(INSTRUCTIONS)
    vocabulary = tokenizer.get_vocab_size()
    config = (laptop_config if kind == "laptop" else released_config)(vocabulary, **changes)
    torch.manual_seed(seed)
    model = RDVLA(config).to(dtype).eval()
    if kind == "laptop":
        path = ImagePath(size=32, resize="box")
    else:
        path = ImagePath(size=28, resize="lanczos3", jpeg=True, crop_area=0.9)
    statistics_of = {"libero_spatial_no_noops": statistics()}
    return Checkpoint(
        model, statistics_of, tokenizer, ActionConvention(gripper), path, step=step, notes={"recipe": "test"}
    )


def same_tensors(first, second):
    own, other = first.model.state_dict(), second.model.state_dict()
    return own.keys() == other.keys() and all(
        own[name].dtype == other[name].dtype and torch.equal(own[name], other[name]) for name in own
    )


def act(checkpoint):
    """Return the actions of a fixed input, float32."""
    config = checkpoint.model.config
    side = config.backbone.image_size
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (1, 2, side, side, 3), generator=generator, dtype=torch.uint8)
    ids = torch.arange(6).unsqueeze(0)
    inputs = Inputs(images, ids, torch.tensor([6]), torch.linspace(-1, 1, 8).unsqueeze(0))
    with torch.no_grad():
        latents = checkpoint.model.head.init_latents(1, generator)
        return checkpoint.model(inputs, latents, n_no_grad=3, n_grad=0).float()
