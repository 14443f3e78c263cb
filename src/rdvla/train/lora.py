"""Low-rank adapters on the vision-language part, through peft; and the network they amount to.

Adapters are put in place module by module, so the network keeps its class and its names; an adapted module `M` holds
its own weights as `M.base_layer` and its adapter as `M.lora_A.default` and `M.lora_B.default`.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from rdvla.checkpoints.lora import merged
from rdvla.errors import MissingExtraError
from rdvla.model.rdvla import RDVLA
from rdvla.model.vision import DinoSiglip
from rdvla.train.config import LoraConfig
from rdvla.train.sharding import gathered

_ADAPTER = "default"
_PARTS = ("vision", "projector", "language")


def add_adapters(model: RDVLA, config: LoraConfig) -> None:
    """Freeze the vision-language part's own weights and adapt them; latent tokens, head and projector stay trainable.

    Adapters start as published: A normal with deviation 1 / rank, B zero, so the network computes what it did.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "train") from None
    for part in _PARTS:
        getattr(model, part).requires_grad_(requires_grad=False)
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
    """Return the names of the modules to adapt: linear layers and patch embeddings of the vision-language part.

    Args:
        model: a network without adapters.
        choice: `all_linear`, or `trained`: only modules that the head's conditioning depends on.
    """
    names = [
        name
        for name, module in model.named_modules()
        if name.split(".")[0] in _PARTS and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    if choice == "all_linear":
        return names
    skipped = uncomputed(model)
    return [name for name in names if not name.startswith(skipped)]


def uncomputed(model: RDVLA) -> tuple[str, ...]:
    """Return the prefixes of modules that nothing computes.

    Towers end a block early, the language model where the head stops reading.
    """
    prefixes = []
    if isinstance(model.vision, DinoSiglip):
        for name in ("featurizer", "fused_featurizer"):
            last = len(getattr(model.vision, name).blocks) - 1
            prefixes += [f"vision.{name}.blocks.{last}.", f"vision.{name}.norm.", f"vision.{name}.attn_pool."]
    deepest = model.config.head.conditioning_layers[-1]
    layers = range(deepest, model.config.language.num_layers)
    return (*prefixes, *(f"language.model.layers.{index}." for index in layers))


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
