"""Low-rank adapters on the backbone, through peft; and the network they amount to.

Adapters are put in place module by module, so the network keeps its class and its names; an adapted module `M` holds
its own weights as `M.base_layer` and its adapter as `M.lora_A.default` and `M.lora_B.default`.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from rdvla.checkpoints.lora import merged
from rdvla.errors import MissingExtraError
from rdvla.model.rdvla import RDVLA
from rdvla.train.config import LoraConfig
from rdvla.train.sharding import gathered

_ADAPTER = "default"


def add_adapters(model: RDVLA, config: LoraConfig) -> None:
    """Freeze the backbone's own weights and adapt them; latent tokens, head and state projector stay trainable.

    Adapters start as published: A normal with deviation 1 / rank, B zero, so the network computes what it did.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "train") from None
    model.backbone.requires_grad_(requires_grad=False)
    model.backbone.latent_tokens.requires_grad = True
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        target_modules=targets(model, config.targets),
        init_lora_weights="gaussian",
    )
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    peft.inject_adapter_in_model(settings, model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():  # peft freezes everything else
        parameter.requires_grad = name in trainable or ".lora_" in name


def targets(model: RDVLA, choice: str) -> list[str]:
    """Return the names of the modules to adapt: linear layers and convolutions of the backbone.

    Args:
        model: a network without adapters.
        choice: `all_linear`, or `trained`: only modules that the head's conditioning depends on.
    """
    backbone = model.backbone
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    skipped = () if choice == "all_linear" else backbone.uncomputed(model.config.head.conditioning_layers)
    return [f"backbone.{name}" for name in names if not name.startswith(skipped)]


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and weights of the network without adapters that computes the same; `model` stays as it is.

    The dtypes are those of the adapted weights, rounded as the published merge rounds. Of a sharded model, one weight
    after the other is brought together, by all processes.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    for name, stored in state.items():
        if ".lora_" in name:
            continue
        tensor = gathered(stored)
        if name.endswith(".base_layer.weight"):
            module = name.removesuffix(".base_layer.weight")
            down, up = (gathered(state[f"{module}.lora_{half}.{_ADAPTER}.weight"]) for half in "AB")
            tensor = merged(tensor, down, up, modules[module].scaling[_ADAPTER])
        yield name.replace(".base_layer.", "."), tensor
