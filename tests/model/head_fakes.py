"""A small recurrent head with open gates, for tests of how it is used."""

import torch

from rdvla.model.config import HeadConfig
from rdvla.model.recurrent import RecurrentHead

CONFIG = HeadConfig(
    hidden_dim=32, num_heads=4, prelude_layers=(1,), recurrent_layers=(2, 2), coda_layers=(2,), mean_recurrence=6
)


def make_head():
    torch.manual_seed(0)
    head = RecurrentHead(CONFIG)
    for module in head.modules():
        if hasattr(module, "gate"):
            torch.nn.init.normal_(module.gate)
    return head
