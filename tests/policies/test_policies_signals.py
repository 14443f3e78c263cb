"""What a head says beside its actions goes with the decision, to each sample its own."""

from dataclasses import replace

import numpy as np
import torch

import checkpoint_fakes
from rdvla.model.decide import decide
from rdvla.policies import network
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import Observation


def test_an_output_of_the_head_is_a_signal_of_the_decision(monkeypatch):
    def doubting(*arguments, **options):
        output = decide(*arguments, **options)
        doubt = output.num_recurrences / 8 + torch.arange(len(output.actions))
        return replace(output, signals={**output.signals, "doubt": doubt})

    monkeypatch.setattr(network, "decide", doubting)
    policy = network.RDVLAPolicy(checkpoint_fakes.make(), name="small")
    images = {name: np.zeros((32, 32, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    seen = Observation(images, np.zeros(8, dtype=np.float32), "put the milk in the basket")
    asks = [Ask(StopRule.fixed(depth), seed=1) for depth in (2, 6, 2)]  # the first and the last share a batch
    chunks = policy.infer_batch([seen] * 3, asks)
    assert [chunk.signals["doubt"] for chunk in chunks] == [0.25, 0.75, 1.25]
