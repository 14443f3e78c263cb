"""Plausible mistakes, each as a small change of our code, and which check catches it.

`python tests/parity/mistakes.py` prints the table (with the recorded values too, where they are at hand).
"""

import functools
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import rdvla.data.images as images
import rdvla.data.stats as stats
import rdvla.model.projector as projector
import rdvla.model.recurrent as recurrent
from rdvla.doctor import golden_image
from rdvla.model.backbones import prismatic
from rdvla.model.backbones.inline import Inline
from rdvla.model.backbones.prismatic import ViT
from rdvla.model.depth import DepthSampler
from rdvla.model.language import LanguageModel
from rdvla.model.stopping import ActionMSE

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden"


def _functional(**changes):
    return SimpleNamespace(**{**vars(F), **changes})


def _tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def _eps(self, x):
    return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), 10 * self.eps).to(x.dtype)


def _neox_rope(x, rope):
    first, second = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat((-second, first), dim=-1) * rope[1]


def _gptj_rope(x, rope):
    cos, sin = (table[:, : table.shape[1] // 2].repeat_interleave(2, dim=1) for table in rope)
    return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) * sin


def _condition(gate_keys, gate_values):
    def condition(self, context):
        gate = torch.tanh(self.gate)
        keys, values = self.k_vision(context.vision), self.v_vision(context.vision)
        keys = torch.cat((self.k_latents(context.latents), gate * keys if gate_keys else keys), dim=1)
        values = torch.cat((self.v_latents(context.latents), gate * values if gate_values else values), dim=1)
        return recurrent.KeysValues(self.heads(keys), self.heads(values))

    return condition


def _shifted(original, by):
    return lambda self, *args: {index: states.roll(by, dims=1) for index, states in original(self, *args).items()}


def _one_layer_late(original):
    def forward(self, embeddings, wanted):
        states = original(self, embeddings, [max(index - 1, 0) for index in wanted])
        return {index: states[max(index - 1, 0)] for index in wanted}

    return forward


def _swapped_colours(original):
    return lambda self, pixels: original(self, pixels.flip(-1))


def _imagenet_constants(towers):
    constants = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return towers.model_copy(update={"dino": towers.dino.model_copy(update=constants)})


def _accurate_decoder(data):
    import io

    return np.asarray(Image.open(io.BytesIO(data)))


def _pil_lanczos(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def _one_step_less(original):
    return lambda self, *args, n_no_grad, n_grad: original(self, *args, n_no_grad=n_no_grad + 1, n_grad=n_grad - 1)


def _unscaled_output(self):
    std = math.sqrt(2 / (5 * self.config.hidden_dim))
    for module in self.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)


def _inverted_draw(shape, std, *, generator=None, device=None):
    level = math.erf(3 / math.sqrt(2))
    uniform = torch.empty(shape, device=device).uniform_(-level, level, generator=generator)
    return torch.erfinv(uniform) * (std * math.sqrt(2))


MISTAKES = {
    "RMS norm eps 1e-5": lambda: mock.patch.object(recurrent.RMSNorm, "forward", _eps),
    "tanh GELU in the projectors": lambda: mock.patch.object(projector, "F", _functional(gelu=_tanh_gelu)),
    "tanh GELU in the towers": lambda: mock.patch.object(prismatic, "F", _functional(gelu=_tanh_gelu)),
    "slices one position late": lambda: mock.patch.object(
        LanguageModel, "forward", _shifted(LanguageModel.forward, -1)
    ),
    "hidden states one layer early": lambda: mock.patch.object(
        LanguageModel, "forward", _one_layer_late(LanguageModel.forward)
    ),
    "rotary: halves turned": lambda: mock.patch.object(recurrent, "apply_rope", _neox_rope),
    "rotary: neighbouring angles": lambda: mock.patch.object(recurrent, "apply_rope", _gptj_rope),
    "rotary: left out": lambda: mock.patch.object(recurrent, "apply_rope", lambda x, rope: x),
    "gate left out": lambda: mock.patch.object(recurrent.Block, "condition", _condition(False, False)),
    "gate on the values too": lambda: mock.patch.object(recurrent.Block, "condition", _condition(True, True)),
    "colour channels reversed": lambda: mock.patch.object(ViT, "pixels", _swapped_colours(ViT.pixels)),
    "unrounded ImageNet constants": lambda: mock.patch.object(
        golden_image, "RELEASED_TOWERS", _imagenet_constants(golden_image.RELEASED_TOWERS)
    ),
    "accurate JPEG decoder": lambda: mock.patch.object(images, "decode_jpeg", _accurate_decoder),
    "PIL's Lanczos": lambda: mock.patch.object(images, "resize_lanczos3", _pil_lanczos),
    "quantile without interpolation": lambda: mock.patch.object(
        stats,
        "_quantile",
        lambda values, level: np.quantile(values.astype(np.float64), level, axis=0, method="nearest"),
    ),
    "one gradient step less": lambda: mock.patch.object(
        recurrent.RecurrentHead, "forward", _one_step_less(recurrent.RecurrentHead.forward)
    ),
    "sum instead of mean in the stopping rule": lambda: mock.patch.object(
        ActionMSE, "metric", lambda self, before, after: (after - before).square().sum(dim=1)
    ),
    "training depth without the + 1": lambda: mock.patch.object(
        DepthSampler, "sample", functools.partialmethod(_minus_one, DepthSampler.sample)
    ),
    "output layers drawn like the others": lambda: mock.patch.object(
        recurrent.RecurrentHead, "reset_parameters", _unscaled_output
    ),
    "scratchpad drawn as before torch 2.13": lambda: mock.patch.object(recurrent, "truncated_normal", _inverted_draw),
    "first prompt token dropped": lambda: mock.patch.object(Inline, "assemble", _without_first(Inline.assemble)),
}

# No network, picture or column inside the package shows these; the recorded values do.
ONLY_RECORDED = ("unrounded ImageNet constants", "output layers drawn like the others")


def _minus_one(self, original, generator=None):
    return max(original(self, generator) - 1, 1)


def _without_first(original):
    def assemble(self, *inputs):
        sequence, first_latent = original(self, *inputs)
        return torch.cat((sequence[:, 1:], sequence[:, -1:]), dim=1), first_latent - 1

    return assemble


@contextmanager
def made(name):
    """Make one mistake for the duration of the block."""
    with MISTAKES[name]():
        yield


def caught_by(checks):
    """Return `case: quantity` of the failed check with the largest excess, and how many failed."""
    failed = [check for check in checks if check.status == "fail"]

    def excess(check):
        return math.inf if check.difference is None else check.difference / max(check.limit, 1e-12)

    failed.sort(key=excess, reverse=True)
    return failed


def main():
    """Print a table: mistake, failed checks, an example with its difference."""
    from rdvla.doctor.golden import run_golden
    from rdvla.doctor.reference import check_reference

    sys.stdout.write(
        "| mistake | built-in checks that fail | recorded checks that fail | for example |\n|---|---|---|---|\n"
    )
    for name in MISTAKES:
        with made(name):
            built_in = caught_by(check_reference())
            recorded = caught_by([c for case in run_golden(GOLDEN) for c in case]) if GOLDEN.is_dir() else []
        example = (
            next((c for c in [*recorded, *built_in] if c.difference is not None), None) or [*recorded, *built_in][0]
        )
        shown = example.note if example.difference is None else f"{example.difference:.1e}, limit {example.limit:.0e}"
        sys.stdout.write(
            f"| {name} | {len(built_in)} | {len(recorded)} | {example.case}: {example.quantity} ({shown}) |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
