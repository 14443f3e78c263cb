"""Steps captured as CUDA graphs."""

import pytest
import torch
from train_fakes import random_batch, released_network, run_small, small

from rdvla.errors import ConfigError
from rdvla.train.captured import CapturedGradient
from rdvla.train.config import TrainConfig
from rdvla.train.step import Compute, Gradient


def test_what_cannot_be_captured_is_said(dataset, tmp_path):
    with pytest.raises(ConfigError, match="captured: only a GPU captures steps, and device is 'cpu'"):
        run_small(dataset, tmp_path / "run", captured=True)
    with pytest.raises(ConfigError, match="choose one"):
        TrainConfig.build(small(dataset, "x", captured=True, sharded=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_gradients_are_the_gradients():
    model, compute = released_network().cuda().train(), Compute(torch.device("cuda"))
    depth = model.depth_sampler.backprop_depth
    batches = [
        (batch.to(compute.device), latents) for batch, latents in (random_batch(model, seed=s) for s in range(3))
    ]

    def gradients(gradient, chosen):
        model.zero_grad()
        errors = [
            gradient.add(batch, latents, 0.1, n_no_grad=number, n_grad=n_grad).item()
            for number, ((batch, latents), n_grad) in enumerate(chosen)
        ]
        return errors, {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }

    captured = CapturedGradient(model, compute)
    full, shallow = [(batch, depth) for batch in batches], [(batches[2], 1), (batches[0], 3)]
    for chosen in (full[:1], full[1:2], full, shallow):
        expected, found = gradients(Gradient(model, compute), chosen), gradients(captured, chosen)
        assert found[0] == pytest.approx(expected[0], rel=1e-4)
        assert found[1].keys() == expected[1].keys()
        torch.testing.assert_close(found[1], expected[1], rtol=1e-2, atol=1e-4)
