"""Adapters, precision and recomputed activations on the released kind of network at toy size; sizes of the real one."""

import copy

import pytest
import torch
from train_fakes import random_batch, released_network

from rdvla.checkpoints.lora import merged
from rdvla.checkpoints.names import stored
from rdvla.model.config import rdvla_0_5b
from rdvla.model.rdvla import RDVLA, absolute_error
from rdvla.train.config import LoraConfig
from rdvla.train.lora import add_adapters, merged_weights, targets
from rdvla.train.precision import cast, checkpoint_activations
from rdvla.train.step import CPU, Compute

pytest.importorskip("peft", reason="peft is not installed (extra 'train')")


def adapted(choice="trained", *, moved=True):
    """Return a network with adapters of rank 2; `moved` ones, as after some training."""
    model = released_network()
    torch.manual_seed(1)
    add_adapters(model, LoraConfig(rank=2, targets=choice))
    if moved:
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def predict(model, compute=CPU):
    batch, latents = random_batch(model)
    return compute.predict(model, batch, latents, n_no_grad=1, n_grad=2)


def backward(model, compute=CPU):
    batch, latents = random_batch(model)
    predicted = compute.predict(model, batch, latents, n_no_grad=1, n_grad=2)
    absolute_error(predicted, batch.actions, batch.action_is_pad)[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_new_adapters_change_nothing():
    assert torch.equal(predict(adapted(moved=False)), predict(released_network()))


def test_merged_computes_what_adapters_do():
    model = adapted("all_linear")
    before = copy.deepcopy(model.state_dict())
    plain = released_network()
    plain.load_state_dict(dict(merged_weights(model)), strict=True)
    difference = (predict(model) - predict(plain)).abs().max()
    assert difference < 1e-5
    assert (predict(model) - predict(released_network())).abs().max() > 1e-3, "the adapters do nothing"
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "merging touched the network"


def test_unmerging_in_place_as_peft_does_agrees():
    model = adapted("all_linear")
    ours = dict(merged_weights(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, layer in layers.items():
        layer.merge()
        assert (layer.base_layer.weight - ours[f"{name}.weight"]).abs().max() < 1e-5, name
        layer.unmerge()
        assert (layer.base_layer.weight - before[f"{name}.base_layer.weight"]).abs().max() < 1e-5, name


def test_bfloat16_weights_merge_with_the_published_rounding():
    model = adapted()
    cast(model, "mixed")
    name = "backbone.projector.fc1"
    layer = model.get_submodule(name)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (down.dtype, layer.base_layer.weight.dtype) == (torch.float32, torch.bfloat16)
    expected = merged(layer.base_layer.weight, down, up, 2.0)
    assert torch.equal(dict(merged_weights(model))[f"{name}.weight"], expected)


@pytest.mark.parametrize("choice", ["trained", "all_linear"])
def test_what_gets_a_gradient(choice):
    """The lean choice adapts what is computed, all of it, and nothing else; the published one more."""
    model = adapted(choice)
    gradients = backward(model)
    without = {name for name, gradient in gradients.items() if gradient is None}
    assert "head.gamma_init" in without
    lora = {name for name in gradients if ".lora_" in name}
    network = released_network()
    left_out = network.backbone.uncomputed(network.config.head.conditioning_layers)
    idle = {name for name in lora if name.removeprefix("backbone.").startswith(left_out)}
    assert without & lora == idle
    assert bool(idle) == (choice == "all_linear")
    rest = {stored(name).split(".")[0] for name in gradients if ".lora_" not in name}
    assert rest == {"latent_tokens", "state_projector", "head"}


def test_recomputed_activations_give_the_same_gradients():
    plain, recomputing = adapted(), adapted()
    checkpoint_activations(recomputing)
    expected, found = backward(plain), backward(recomputing)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        assert gradient is None or torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_lower_precision_stays_near(precision):
    model = adapted()
    cast(model, precision)
    kept = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert kept == {torch.float32 if precision == "mixed" else torch.bfloat16}
    compute = Compute(torch.device("cpu"), precision)
    expected = predict(adapted())
    assert (predict(model, compute) - expected).abs().max() < 0.05 * expected.abs().max() + 0.05
    gradients = [gradient for gradient in backward(model, compute).values() if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_sizes_of_the_released_network():
    """103.8 M adapter weights as published, of which lm_head's belong to a layer that does not exist here."""
    with torch.device("meta"):
        model = RDVLA(rdvla_0_5b())
    modules = dict(model.named_modules())

    def count(choice):
        weights = [modules[name].weight for name in targets(model, choice)]
        return sum(64 * (weight.shape[0] + weight[0].numel()) for weight in weights)

    lm_head = 64 * (896 + 151936)
    assert (count("all_linear") + lm_head) / 1e6 == pytest.approx(103.8, abs=0.05)
    assert count("trained") < count("all_linear") - 3e6
