"""The operations of `rdvla.data.augmentation` on a whole batch of tensors, for a GPU.

A draw does here what it does there, to within one of 255 levels. Shapes: N images of h x w pixels.
"""

from dataclasses import fields

import torch
from torch import Tensor

from rdvla.data.augmentation import Factors

_COLUMNS = {entry.name: number for number, entry in enumerate(fields(Factors))}


def augment_tensors(images_Nhwc: Tensor, factors_NF: Tensor) -> Tensor:
    """Apply a draw of its own to each image.

    Args:
        images_Nhwc: uint8 `[N, h, w, 3]`.
        factors_NF: float32 `[N, 9]` on the CPU, the fields of `Factors` in their order.

    Returns:
        uint8 `[N, h, w, 3]`, on the images' device.
    """
    used = {name for name, column in _COLUMNS.items() if bool((factors_NF[:, column] != getattr(_PLAIN, name)).any())}
    on_device = factors_NF.to(images_Nhwc.device, non_blocking=True)
    factor = {name: on_device[:, column] for name, column in _COLUMNS.items()}
    if used & {"vertical", "horizontal"}:
        images_Nhwc = _shift(images_Nhwc, factor["vertical"].long(), factor["horizontal"].long())
    planes = images_Nhwc.permute(0, 3, 1, 2).float() * (1 / 255)
    if "side" in used:
        planes = _crop(planes, factor["top"], factor["left"], factor["side"])
    if "brightness" in used:
        planes = (planes + _per_image(factor["brightness"])).clamp_(0, 1)
    if "contrast" in used:
        mean = planes.mean(dim=(2, 3), keepdim=True)
        planes = ((planes - mean) * _per_image(factor["contrast"]) + mean).clamp_(0, 1)
    if "saturation" in used:
        planes = _saturation(planes, _per_image(factor["saturation"]))
    if "hue" in used:
        planes = _hue(planes, factor["hue"][:, None, None])
    return (planes * 255.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_PLAIN = Factors()


def _per_image(factor_N: Tensor) -> Tensor:
    return factor_N[:, None, None, None]


def _shift(images_Nhwc: Tensor, down_N: Tensor, right_N: Tensor) -> Tensor:
    n, h, w, _ = images_Nhwc.shape
    device = images_Nhwc.device
    rows_Nh = (torch.arange(h, device=device) - down_N[:, None]).clamp_(0, h - 1)
    columns_Nw = (torch.arange(w, device=device) - right_N[:, None]).clamp_(0, w - 1)
    return images_Nhwc[torch.arange(n, device=device)[:, None, None], rows_Nh[:, :, None], columns_Nw[:, None, :]]


def _crop(planes_Nchw: Tensor, top_N: Tensor, left_N: Tensor, side_N: Tensor) -> Tensor:
    """Return the box from `top`, `left` of this `side` (fractions), sampled bilinearly at the old size."""
    columns_Nchw = _sample(planes_Nchw, left_N, side_N)
    return _sample(columns_Nchw.transpose(2, 3), top_N, side_N).transpose(2, 3).clamp(0, 1)


def _sample(planes_Nchw: Tensor, start_N: Tensor, side_N: Tensor) -> Tensor:
    """Sample the last axis."""
    w = planes_Nchw.shape[-1]
    at_Nw = start_N[:, None] * (w - 1) + torch.arange(w, device=planes_Nchw.device) * side_N[:, None]
    at_N11w = at_Nw.clamp_(0, w - 1)[:, None, None, :]
    before, after = (at.long().expand_as(planes_Nchw) for at in (at_N11w.floor(), at_N11w.ceil()))
    return torch.lerp(planes_Nchw.gather(3, before), planes_Nchw.gather(3, after), at_N11w - at_N11w.floor())


def _saturation(planes_Nchw: Tensor, factor_N111: Tensor) -> Tensor:
    value = planes_Nchw.amax(dim=1, keepdim=True)
    chroma = value - planes_Nchw.amin(dim=1, keepdim=True)
    limit = torch.where(chroma > 0, value / chroma.clamp_min(1e-12), 1.0)
    return (value - (value - planes_Nchw) * torch.minimum(factor_N111, limit)).clamp_(0, 1)


def _hue(planes_Nchw: Tensor, delta_N11: Tensor) -> Tensor:
    red, green, blue = planes_Nchw.unbind(1)
    value, low = planes_Nchw.amax(dim=1), planes_Nchw.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    red_first, green_first = value == red, value == green
    sector = torch.where(
        red_first,
        (green - blue) / safe,
        torch.where(green_first, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.remainder(torch.where(chroma > 0, sector, 0.0) + 6 * delta_N11, 6)
    rotated = []
    for centre in (0.0, 2.0, 4.0):
        distance = (hue - centre).abs()
        rotated.append(low + chroma * (2 - torch.minimum(distance, 6 - distance)).clamp(0, 1))
    return torch.stack(rotated, dim=1).clamp_(0, 1)
