"""A network made ready to act: the same network, its linear layers laid out for the processor that it runs on.

A decision multiplies the weights of the core with K rows, again and again: its time is the time to read them. The
stock product reads them at a fraction of the memory's speed; oneDNN's, from weights arranged once, at up to three times
that, and int8 weights are a quarter as long.
"""

import copy
import functools
import platform
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from rdvla.errors import ConfigError, suggest

PRECISIONS = ("float32", "bfloat16", "int8")

Network = TypeVar("Network", bound=nn.Module)

PACK_FROM = 1 << 17
"""Weights with fewer numbers than this stay as they are: for them oneDNN's call costs more than it saves."""


class PackedLinear(nn.Module):
    """`nn.Linear` with weights in oneDNN's layout for this processor. Has no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        """Arrange the weights of `linear`, which is on a CPU."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """`nn.Linear` in 8 bits: one scale per output for the weights, one per token, found anew, for the input.

    With a scale per token (not per tensor), what a sample gets does not depend on its companions. Has no gradient.

    Attributes:
        wide: whether a zero follows every weight, where this processor adds products two by two in 16 bits: the same
            exact sums for twice the memory and time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Round the weights of `linear`, which is on a CPU, to 255 levels per output."""
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = _scale(weight).squeeze(-1)
        rounded = (weight / self.scales.unsqueeze(-1)).round().to(torch.int8)
        self.wide = int8_products() == "wide"
        if self.wide:
            rounded = torch.stack((rounded, torch.zeros_like(rounded)), dim=-1).flatten(1)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 `[..., in]` to `[..., out]`."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)
        levels = (rows / scale).add_(128.5).to(torch.uint8)  # rounded; the kernel wants them unsigned, zero at 128
        if self.wide:
            levels = levels.repeat_interleave(2, dim=-1)
        product = _product(levels, self.weight, self.scales, self.zeros)
        y = (product * scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def _scale(rows: Tensor) -> Tensor:
    """Return what one of 127 levels is worth in each row, `[..., 1]`."""
    return rows.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12) / 127


@functools.cache
def int8_products() -> Literal["native", "wide"] | None:
    """Return how 8-bit numbers are multiplied exactly here, None if they are not (no x86, or a torch without oneDNN).

    `native` with VNNI instructions, which add the products in 32 bits. Without them oneDNN adds pairs of products in
    16 bits, where two large ones saturate; `wide` weights pair every product with a zero.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    levels, weights = torch.full((8, 64), 255, dtype=torch.uint8), torch.full((64, 64), 127, dtype=torch.int8)
    scales, zeros = torch.ones(64), torch.zeros(64, dtype=torch.int64)
    found = _product(levels, torch.ops.onednn.qlinear_prepack(weights, None), scales, zeros)
    return "native" if bool((found == (255 - 128) * 127 * 64).all()) else "wide"


def _product(levels: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return `(levels - 128) @ weight.T * scales`, float32, for uint8 levels and prepacked int8 weights."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        levels, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def freeze(network: Network, precision: str | None = None, *, pack: bool = True) -> Network:
    """Return `network` for inference: in `precision`, with the linear layers replaced by faster ones where it helps.

    The copy shares its other parameters with `network`, whose own weights stay in float if `precision` is int8. Its
    linear layers have no gradient and no place in `state_dict`. On other devices than a CPU the layers stay.

    Args:
        network: any module, on one device; converted in place to the dtype that `precision` computes in.
        precision: float32, bfloat16, int8 (of the linear layers; the rest is float32), None for the dtype it has.
        pack: False leaves the linear layers as they are, for a compiler to see.

    Raises:
        ConfigError: an unknown precision, or int8 on anything but an x86 CPU, or not packed.
    """
    if precision is not None:
        if precision not in PRECISIONS:
            raise ConfigError(f"unknown precision '{precision}'.{suggest(precision, PRECISIONS)}")
        network.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    if precision == "int8" and not pack:
        raise ConfigError("precision 'int8' cannot be compiled; take bfloat16 or float32, or do not compile.")
    on_cpu = all(each.device.type == "cpu" for each in network.parameters())
    packable = _packable_dtypes() if on_cpu and pack else ()
    if precision == "int8" and torch.int8 not in packable:
        raise ConfigError("precision 'int8' needs an x86 CPU and a torch with oneDNN; take bfloat16 or float32.")
    kept: dict[int, object] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    for module in network.modules():
        if type(module) is nn.Linear and precision == "int8":
            kept[id(module)] = Int8Linear(module)
        elif type(module) is nn.Linear and module.weight.dtype in packable and module.weight.numel() >= PACK_FROM:
            kept[id(module)] = PackedLinear(module)
    return copy.deepcopy(network, kept).eval()


def _packable_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes for which oneDNN has products on this processor that are worth it."""
    if not torch.backends.mkldnn.is_available():
        return ()
    bfloat16 = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    int8 = (torch.int8,) if int8_products() else ()
    return (torch.float32, *bfloat16, *int8)
