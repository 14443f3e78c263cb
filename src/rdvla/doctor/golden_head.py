"""Recorded cases of the action head: outputs, states, stopping, gradients."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdvla.checkpoints import names
from rdvla.checkpoints.official_config import head_config
from rdvla.checkpoints.tensors import check_tensors, read_json, read_safetensors
from rdvla.doctor.checks import Check, compare, compare_outputs, equal, orientation, unread, within
from rdvla.errors import CheckpointError
from rdvla.model.decide import decide
from rdvla.model.projector import StateProjector
from rdvla.model.recurrent import Context, RecurrentHead, rope_tables
from rdvla.model.stopping import make_criterion
from rdvla.stops import StopRule

GRADIENT_LIMIT = 1e-4
METRIC_LIMIT = 1e-4
BFLOAT16_LIMIT = 0.1
"""For orientation: another order of summation moves bfloat16 outputs by about 1e-2."""
DEFAULT_MAX_DEPTH = 32

_RULES: Mapping[str, str] = {"kl": "action_mse", "cos": "cosine"}


@dataclass
class HeadCase:
    """A recorded head with its inputs.

    Attributes:
        name: e.g. `head/main`.
        document: the case's JSON.
        head: the head with the recorded weights, float32.
        projector: the state projector.
        io: recorded inputs, intermediates and outputs.
        read: keys of `io` that were compared or used.
    """

    name: str
    document: dict[str, Any]
    head: RecurrentHead
    projector: StateProjector
    io: dict[str, Tensor]
    read: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return self.io[key]

    def contexts(
        self, *, batch: int | None = None, stack: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> dict[int, Context]:
        """Return what the head attends to, for the first `batch` samples."""
        stack = (self["in.hidden_stack"] if stack is None else stack)[:batch].to(dtype)
        state_B1D = self.projector(self["in.proprio"][:batch].to(dtype)).unsqueeze(1)
        split = self.document["num_task_tokens"]
        return {
            layer: Context(torch.cat((stack[:, layer, split:], state_B1D), dim=1), stack[:, layer, :split])
            for layer in self.head.config.conditioning_layers
        }


def check_head(directory: Path, name: str) -> list[Check]:
    """Run the case `NAME.{weights,io,grads}.safetensors` + `NAME.json` of `directory`."""
    case = load_head_case(directory, name)
    checks = [*_inside(case), *_fixed(case), *_stopping(case)]
    gradients = directory / f"{name}.grads.safetensors"
    if gradients.is_file():
        checks += _gradients(case, read_safetensors(gradients))
    return [*checks, *_bfloat16(case), *unread(case.name, set(case.io) - case.read)]


def load_head_case(directory: Path, name: str) -> HeadCase:
    """Read a case and build its head.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    document = read_json(directory / f"{name}.json")
    if not isinstance(document.get("config"), dict) or not isinstance(document.get("num_task_tokens"), int):
        raise CheckpointError(f"'{directory / name}.json' needs 'config' and 'num_task_tokens'.")
    io = read_safetensors(directory / f"{name}.io.safetensors")
    weights = read_safetensors(directory / f"{name}.weights.safetensors")
    config = head_config(document["config"], state_dim=io["in.proprio"].shape[-1], source=f"{name}.json")
    head, projector = RecurrentHead(config), StateProjector(config.state_dim, config.hidden_dim)
    tensors = names.to_ours({published_key(key): tensor for key, tensor in weights.items()})
    for module, prefix in ((head, "head."), (projector, "state_projector.")):
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        check_tensors(shapes, own, dtype=torch.float32, source=f"{name}.weights.safetensors")
        module.load_state_dict(own)
    return HeadCase(f"head/{name}", document, head.eval(), projector.eval(), io)


def published_key(key: str) -> str:
    """Turn `head.X`, `model.X` or `proprio_projector.X` into a published name with file prefix."""
    if key.startswith("proprio_projector."):
        return names.PROPRIO + key.removeprefix("proprio_projector.")
    return names.HEAD + key.removeprefix("head.")


@torch.no_grad()
def _inside(case: HeadCase) -> list[Check]:
    """Compare the Prelude, the position tables, and the state and output of every iteration."""
    contexts = case.contexts()
    conditioning = case.head.condition(contexts)
    tables = rope_tables(case.head.config, case["in.S0"])
    found: dict[str, Tensor] = {
        "mid.prelude_out": conditioning.injected,
        "mid.proprio_features": next(iter(contexts.values())).latents[:, -1:],
        "mid.rope_cos": tables[0],
        "mid.rope_sin": tables[1],
    }
    checks = [
        compare_outputs(case.name, key, value.expand_as(case[key]), case[key])
        for key, value in found.items()
        if key in case.io
    ]
    for key in [key for key in case.io if re.fullmatch(r"mid\.(states|outputs)_1_to_\d+", key)]:
        recorded = case[key]
        latents, found_each = case["in.S0"], []
        for _ in range(recorded.shape[1]):
            latents = case.head.core(latents, conditioning)
            found_each.append(latents if "states" in key else case.head.coda(latents, conditioning))
        checks.append(compare_outputs(case.name, key, torch.stack(found_each, dim=1), recorded, recorded.shape[1]))
    return checks


@torch.no_grad()
def _fixed(case: HeadCase) -> list[Check]:
    checks = []
    for key in [key for key in case.io if key.startswith("out.fixed_")]:
        label = key.removeprefix("out.fixed_")
        depth = case.head.config.mean_recurrence if label == "default" else int(label.removeprefix("r"))
        found = case.head(case.contexts(), case["in.S0"], n_no_grad=depth, n_grad=0)
        checks.append(compare_outputs(case.name, key, found, case[key], depth))
    return checks


@torch.no_grad()
def _stopping(case: HeadCase) -> list[Check]:
    """Compare iterations, final metric and output of the adaptive runs, judged for the whole batch as published."""
    checks = []
    for family, rule_name in _RULES.items():
        for label, expected in case.document.get(family, {}).items():
            quantity = f"{family}_{label}"
            rule = StopRule(rule_name, float(expected["threshold"]), max_depth=_max_depth(label, expected))
            batch = expected.get("batch", len(case["in.S0"]))
            conditioning = case.head.condition(case.contexts(batch=batch))
            criterion = make_criterion(rule, whole_batch=True)
            decision = decide(case.head, conditioning, case["in.S0"][:batch], criterion, rule)
            checks.append(
                equal(
                    case.name,
                    f"{quantity} iterations",
                    int(decision.num_recurrences.max()),  # the whole batch stops together
                    expected["actual_iter"],
                )
            )
            checks.append(_metric(case.name, quantity, decision.traces[0], expected["final_metric"]))
            if f"out.{quantity}" in case.io:
                recorded = case[f"out.{quantity}"]
                depth = expected["actual_iter"]
                checks.append(compare_outputs(case.name, f"out.{quantity}", decision.actions, recorded, depth))
    return checks


def _max_depth(label: str, expected: Mapping[str, Any]) -> int:
    named = re.search(r"max(\d+)", label)
    return int(expected.get("max_iter", named.group(1) if named else DEFAULT_MAX_DEPTH))


def _metric(case: str, quantity: str, trace: list[float], expected: float | None) -> Check:
    if expected is None or not trace:
        return equal(case, f"{quantity} metric", trace[-1] if trace else None, expected)
    # A cosine distance is 1 minus a float32 number close to 1, so it is known to about 1e-7 only.
    allowed = max(METRIC_LIMIT * abs(expected), 1e-6 if quantity.startswith("cos") else 1e-9)
    return within(case, f"{quantity} metric", abs(trace[-1] - expected), allowed)


def _gradients(case: HeadCase, recorded: Mapping[str, Tensor]) -> list[Check]:
    """Compare the L1 loss and every gradient of truncated backpropagation; depths are the `rN.` prefixes."""
    checks: list[Check] = []
    used: set[str] = set()
    modules = {"head.": case.head, "state_projector.": case.projector}
    for prefix in sorted({key.split(".")[0] for key in recorded}, key=lambda name: int(name[1:])):
        depth = int(prefix[1:])
        n_grad = min(depth, case.head.config.backprop_depth)
        stack = case["in.hidden_stack"].clone().requires_grad_()
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        found = case.head(case.contexts(stack=stack), case["in.S0"], n_no_grad=depth - n_grad, n_grad=n_grad)
        loss = F.l1_loss(found, case["in.target"])
        torch.autograd.backward(loss)
        gradients = {
            start + name: parameter.grad
            for start, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        expected = {
            key.removeprefix(f"{prefix}."): value for key, value in recorded.items() if key.startswith(prefix + ".")
        }
        checks.append(compare_outputs(case.name, f"{prefix} loss", loss.reshape(1), expected["loss"], depth))
        by_name = names.to_ours(
            {
                published_key(key.removeprefix("grad.")): value
                for key, value in expected.items()
                if key.startswith("grad.")
            }
        )
        checks.append(_gradient_check(case.name, prefix, gradients, by_name))
        if "grad_in.hidden_stack" in expected:
            assert stack.grad is not None
            reference = expected["grad_in.hidden_stack"]
            label = f"{prefix} gradient of the hidden states"
            checks.append(compare(case.name, label, stack.grad, reference, GRADIENT_LIMIT, relative=True))
        used |= {
            f"{prefix}.{key}" for key in expected if key.startswith("grad.") or key in ("loss", "grad_in.hidden_stack")
        }
    return checks + unread(f"{case.name} gradients", set(recorded) - used)


def _gradient_check(
    case: str, prefix: str, gradients: Mapping[str, Tensor | None], expected: Mapping[str, Tensor]
) -> Check:
    """Return the worst relative difference of all parameters, and whether the same ones have a gradient.

    A gradient that is (nearly) zero by construction, as gamma_adapt's is, consists of rounding: it is measured against
    a hundredth of the largest gradient instead of its own size.
    """
    largest = max((float(value.abs().max()) for value in expected.values()), default=0.0)
    without = sorted(name for name, value in gradients.items() if value is None)
    absent = sorted(gradients.keys() - expected.keys())
    worst, worst_name = 0.0, ""
    for name, reference in expected.items():
        found = gradients[name]
        scale = max(float(reference.abs().max()), 1e-2 * largest, 1e-12)
        difference = float((found - reference).abs().max()) / scale if found is not None else float("inf")
        if not difference <= worst:
            worst, worst_name = difference, name
    quantity = f"{prefix} gradients of {len(expected)} parameters (relative)"
    if without != absent:
        return Check(case, quantity, "fail", worst, GRADIENT_LIMIT, f"without gradient: {without} instead of {absent}")
    return within(case, quantity, worst, GRADIENT_LIMIT, note=f"worst: {worst_name}")


@torch.no_grad()
def _bfloat16(case: HeadCase) -> list[Check]:
    """Compare the bfloat16 outputs, for orientation. Casts the case's weights, so this comes last."""
    keys = [key for key in case.io if re.fullmatch(r"out\.bf16_r\d+", key)]
    if not keys:
        return []
    case.head.to(torch.bfloat16)
    case.projector.to(torch.bfloat16)
    checks = []
    for key in keys:
        depth = int(key.rpartition("r")[2])
        latents = case["in.S0"].to(torch.bfloat16)
        found = case.head(case.contexts(dtype=torch.bfloat16), latents, n_no_grad=depth, n_grad=0)
        checks.append(orientation(case.name, key, found, case[key], BFLOAT16_LIMIT))
    return checks


def find_head_cases(directory: Path) -> list[str]:
    """Return the names of the cases in a `head/` directory."""
    return sorted(path.name.removesuffix(".weights.safetensors") for path in directory.glob("*.weights.safetensors"))
