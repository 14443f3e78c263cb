"""Networks of a few thousand parameters, and a policy for the toy."""

import numpy as np
import torch

from rdvla.checkpoints import Checkpoint, save_native
from rdvla.data.images import ImagePath
from rdvla.data.stats import DatasetStatistics, NormStats
from rdvla.model.backbones.prismatic import DinoSiglipConfig, PrismaticConfig, ViTConfig
from rdvla.model.backbones.tiny import ConvConfig, TinyConfig
from rdvla.model.config import HeadConfig, RDVLAConfig
from rdvla.model.language import LanguageConfig
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.policy import PLAIN, Policy, PolicyMetadata
from rdvla.types import ActionChunk, ActionConvention

TOWER = {"num_heads": 2, "mean": (0.48, 0.45, 0.4), "std": (0.23, 0.22, 0.225)}
HEAD = HeadConfig(hidden_dim=16, num_heads=2, prelude_layers=(1,), recurrent_layers=(2, 2), coda_layers=(2,))
LANGUAGE = LanguageConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=24)
TOWERS = DinoSiglipConfig(
    image_size=28,
    dino=ViTConfig(depth=3, width=8, mlp_width=32, num_registers=4, layer_scale=True, **TOWER),
    siglip=ViTConfig(depth=2, width=12, mlp_width=44, attention_pool=True, **TOWER),
)
RELEASED_KIND = RDVLAConfig(
    backbone=PrismaticConfig(vision=TOWERS, projector_width=80, language=LANGUAGE, num_latent_tokens=5), head=HEAD
)
TINY = TinyConfig(
    vision=ConvConfig(image_size=32, channels=(8, 8), norm_groups=4),
    projector_width=16,
    language=LANGUAGE,
    num_latent_tokens=3,
)
LAPTOP_KIND = RDVLAConfig(
    backbone=TINY,
    head=HEAD.model_copy(update={"coda_cross_attention": False}),
    prompt="{instruction}",
)


def save_checkpoint(directory):
    torch.manual_seed(0)
    values = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    action = NormStats.compute(values[:, :7].clip(-1, 1), [True] * 6 + [False])
    statistics = DatasetStatistics(action, NormStats.compute(values), num_transitions=50, num_trajectories=2)
    tokenizer = train_tokenizer(["put the milk in the basket"])
    language = LANGUAGE.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    config = LAPTOP_KIND.model_copy(update={"backbone": TINY.model_copy(update={"language": language})})
    model = RDVLA(config).eval()
    path = ImagePath(size=32, resize="box")
    save_native(
        directory, Checkpoint(model, {"toy": statistics}, tokenizer, ActionConvention("open_is_negative"), path, step=1)
    )
    return directory


class Reacher(Policy):
    """Moves by what it sees, so that a wrong picture leads elsewhere."""

    metadata = PolicyMetadata("reacher", ("primary",), 7, 7, 4, {})

    def infer(self, observation, ask=PLAIN):
        shade = observation.images["primary"].mean() / 255
        return ActionChunk(np.full((8, 7), shade - 0.5, dtype=np.float32), ask.stop.max_depth)

    def reset(self):
        pass
