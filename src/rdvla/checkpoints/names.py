"""Published tensor names and ours, both ways.

Ours are the names in our files: those of a network in memory, but that its backbone's tensors have no prefix.

The released layout spreads one network over three files: the merged VLM, the action head and the state ("proprio")
projector. Here a published name carries its file as a prefix: `vlm:`, `head:` or `proprio:`.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from rdvla.errors import CheckpointError

VLM, HEAD, PROPRIO = "vlm:", "head:", "proprio:"

# (published, ours); a trailing dot or colon marks a prefix, anything else is a whole name. First match wins.
_RULES: tuple[tuple[str, str], ...] = (
    ("vlm:vision_backbone.", "vision."),
    ("vlm:projector.", "projector."),
    ("vlm:language_model.", "language."),
    ("vlm:action_queries.weight", "latent_tokens"),
    ("head:model.action_queries", "head.prelude.action_queries"),
    ("head:model.prelude.", "head.prelude.blocks."),
    ("head:model.recurrent.", "head.core.blocks."),
    ("head:model.coda.", "head.coda.blocks."),
    ("head:model.adapter.", "head.core.adapter."),
    ("head:model.adapter_norm.", "head.core.adapter_norm."),
    ("head:model.recurrent_norm.", "head.core.norm."),
    ("head:model.output_norm.", "head.coda.norm."),
    ("head:model.output_proj.", "head.coda.output_proj."),
    ("head:model.gamma_adapt", "head.core.gamma_adapt"),
    ("head:model.gamma_init", "head.gamma_init"),
    ("proprio:", "state_projector."),
)


def stored(name: str) -> str:
    """Return our name of a tensor that is called `name` in a network."""
    return name.removeprefix("backbone.")


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, shared with it, by our names."""
    return {stored(name): tensor for name, tensor in model.state_dict().items()}


def to_ours(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from published names (with file prefix) to ours.

    Raises:
        CheckpointError: names that no released checkpoint has; all of them are listed.
    """
    return _rename(published, _RULES)


def to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from our names to published ones (with file prefix).

    Raises:
        CheckpointError: names that the released layout has no place for; all of them are listed.
    """
    return _rename(ours, tuple((target, source) for source, target in _RULES))


def part(published: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one file, without the file prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in published.items() if name.startswith(prefix)}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mark tensors as belonging to one file."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _rename(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    rules = tuple(rules)
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        target = _match(name, rules)
        if target is None:
            unknown.append(name)
        else:
            renamed[target] = tensor
    if unknown:
        raise CheckpointError(f"unknown tensors: {', '.join(sorted(unknown)[:12])} ({len(unknown)} in all).")
    return renamed


def _match(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for source, target in rules:
        if source.endswith((".", ":")) and name.startswith(source):
            return target + name.removeprefix(source)
        if name == source:
            return target
    return None
