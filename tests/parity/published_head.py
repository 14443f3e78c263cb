"""The action head once more, written straight from its description: no caching, no fused kernels, published names.

Slow and plain on purpose. It shares no code with `rdvla.model`, so that agreement means something.
"""

import functools
import itertools
import json
import math

import torch
from safetensors.torch import save_file

SQUARE = (
    *("q_self", "k_self", "v_self", "o_self", "q_cross", "o_cross"),
    *("k_latents", "v_latents", "k_vision", "v_vision"),
)


def draw_weights(config, state_dim, seed):
    """Return published name -> float32 tensor for a head and state projector of these sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std

    width, out = config["hidden_dim"], config["action_dim"]
    weights = {
        "head.model.action_queries": normal(config["action_chunk_len"], width, std=0.6),
        "head.model.adapter.weight": normal(width, 2 * width, std=1 / math.sqrt(2 * width)),
        "head.model.adapter_norm.weight": 1 + normal(width, std=0.1),
        "head.model.recurrent_norm.weight": 1 + normal(width, std=0.1),
        "head.model.output_norm.weight": 1 + normal(width, std=0.1),
        "head.model.gamma_adapt": torch.tensor([1.3]),
        "head.model.gamma_init": torch.tensor([0.9]),
        "head.model.output_proj.weight": normal(out, width, std=1 / math.sqrt(width)),
        "head.model.output_proj.bias": normal(out, std=0.1),
        "proprio_projector.fc1.weight": normal(width, state_dim, std=0.4),
        "proprio_projector.fc1.bias": normal(width, std=0.1),
        "proprio_projector.fc2.weight": normal(width, width, std=1 / math.sqrt(width)),
        "proprio_projector.fc2.bias": normal(width, std=0.1),
    }
    for group in ("prelude", "recurrent", "coda"):
        for index in range(len(config[f"{group}_vlm_layers"])):
            start = f"head.model.{group}.{index}."
            for name in SQUARE:
                weights[f"{start}{name}.weight"] = normal(width, width, std=0.8 / math.sqrt(width))
            for name, shape in (("ffn_gate", (4 * width, width)), ("ffn_up", (4 * width, width))):
                weights[f"{start}{name}.weight"] = normal(*shape, std=1 / math.sqrt(width))
            weights[f"{start}ffn_down.weight"] = normal(width, 4 * width, std=0.3 / math.sqrt(4 * width))
            for number in (1, 2, 3):
                weights[f"{start}norm{number}.weight"] = 1 + normal(width, std=0.1)
            weights[f"{start}gate"] = normal(1, std=0.7)
    return weights


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


@functools.cache
def angles(positions, width, base):
    """One angle per position and number: laid out for halves, so number k has the frequency of k mod width/2."""
    rows = [[p / base ** (2 * (k % (width // 2)) / width) for k in range(width)] for p in range(positions)]
    return torch.tensor(rows)


def rope(x, base):
    """Angles laid out for halves, neighbours turned."""
    angle = angles(x.shape[-2], x.shape[-1], base)
    turned = torch.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * torch.cos(angle) + turned * torch.sin(angle)


def split(x, heads):
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def layer(w, start, x, latents, vision, config):
    heads, eps = config["num_heads"], config.get("rms_norm_eps", 1e-6)
    scale = 1 / math.sqrt(config["hidden_dim"] // heads)

    def linear(name, value):
        return value @ w[f"{start}{name}.weight"].T

    n = rms_norm(x, w[f"{start}norm1.weight"], eps)
    base = config.get("rope_base", 1e4)
    q, k = (rope(split(linear(name, n), heads), base) for name in ("q_self", "k_self"))
    attention = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1) @ split(linear("v_self", n), heads)
    x = x + linear("o_self", attention.transpose(1, 2).reshape(x.shape))

    q = split(linear("q_cross", rms_norm(x, w[f"{start}norm2.weight"], eps)), heads)
    to_latents = q @ split(linear("k_latents", latents), heads).transpose(-1, -2)
    to_vision = q @ split(linear("k_vision", vision), heads).transpose(-1, -2) * torch.tanh(w[f"{start}gate"])
    mass = torch.softmax(torch.cat([to_latents, to_vision], dim=-1) * scale, dim=-1)
    values = split(torch.cat([linear("v_latents", latents), linear("v_vision", vision)], dim=1), heads)
    x = x + linear("o_cross", (mass @ values).transpose(1, 2).reshape(x.shape))

    n = rms_norm(x, w[f"{start}norm3.weight"], eps)
    gated = torch.nn.functional.silu(linear("ffn_gate", n)) * linear("ffn_up", n)
    return x + linear("ffn_down", gated)


def run(w, config, stack, state, scratchpad, tasks, depth, no_grad_steps=0):
    """Return the states `[B, K, D]` and the outputs `[B, K, A]` after each iteration."""
    eps = config.get("rms_norm_eps", 1e-6)
    hidden = torch.nn.functional.gelu(state @ w["proprio_projector.fc1.weight"].T + w["proprio_projector.fc1.bias"])
    token = (hidden @ w["proprio_projector.fc2.weight"].T + w["proprio_projector.fc2.bias"]).unsqueeze(1)

    def blocks(group, x):
        for index, source in enumerate(config[f"{group}_vlm_layers"]):
            latents = torch.cat([stack[:, source, tasks:], token], dim=1)
            x = layer(w, f"head.model.{group}.{index}.", x, latents, stack[:, source, :tasks], config)
        return x

    injected = blocks("prelude", w["head.model.action_queries"].unsqueeze(0).repeat(len(stack), 1, 1))
    states, outputs = [], []
    for step in range(depth):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= no_grad_steps):
            x = torch.cat([scratchpad, injected], dim=-1) @ w["head.model.adapter.weight"].T
            x = rms_norm(w["head.model.gamma_adapt"] * x, w["head.model.adapter_norm.weight"], eps)
            scratchpad = rms_norm(blocks("recurrent", x), w["head.model.recurrent_norm.weight"], eps)
        x = rms_norm(blocks("coda", scratchpad), w["head.model.output_norm.weight"], eps)
        states.append(scratchpad)
        outputs.append(x @ w["head.model.output_proj.weight"].T + w["head.model.output_proj.bias"])
    return states, outputs


def write_case(directory, name, config, *, seed, state_dim=8, tasks=6, latents=4, batch=2):
    """Write a case in the recorded format, with outputs, states, stopping and gradients after up to 9 iterations."""
    w = draw_weights(config, state_dim, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    layers = 1 + max(max(config[f"{group}_vlm_layers"], default=0) for group in ("prelude", "recurrent", "coda"))
    width, chunk = config["hidden_dim"], config["action_chunk_len"]
    stack = torch.randn(batch, layers, tasks + latents, width, generator=generator)
    state = torch.rand(batch, state_dim, generator=generator) * 2 - 1
    scratchpad = torch.randn(batch, chunk, width, generator=generator) * 0.6
    target = torch.rand(batch, chunk, config["action_dim"], generator=generator) * 2 - 1
    io = {"in.hidden_stack": stack, "in.proprio": state, "in.S0": scratchpad, "in.target": target}
    with torch.no_grad():
        states, outputs = run(w, config, stack, state, scratchpad, tasks, 9)
    io["mid.states_1_to_9"] = torch.stack(states, dim=1)
    depths = {"r1": 1, "r3": 3, "r9": 9, "default": config["mean_recurrence"]}
    io |= {f"out.fixed_{label}": outputs[depth - 1].clone() for label, depth in depths.items()}
    mse = [float((after - before).square().mean()) for before, after in itertools.pairwise(outputs)]
    lowest = sorted(mse)[:2]
    threshold = math.sqrt(lowest[0] * lowest[1])
    stop = 2 + mse.index(lowest[0])
    io["out.kl_b2"] = outputs[stop - 1].clone()
    kl = {"actual_iter": stop, "final_metric": lowest[0], "threshold": threshold, "batch": batch, "max_iter": 9}
    document = {"config": config, "num_task_tokens": tasks, "num_latent_tokens": latents, "kl": {"b2": kl}}
    (directory / f"{name}.json").write_text(json.dumps(document))
    save_file(w, directory / f"{name}.weights.safetensors")
    save_file(io, directory / f"{name}.io.safetensors")
    save_file(gradients(w, config, io, tasks, depth=9), directory / f"{name}.grads.safetensors")


def gradients(w, config, io, tasks, depth):
    """Return loss and gradients of truncated backpropagation as `rN.*`."""
    w = {name: value.clone().requires_grad_() for name, value in w.items()}
    stack = io["in.hidden_stack"].clone().requires_grad_()
    skipped = max(0, depth - config["backprop_depth"])
    output = run(w, config, stack, io["in.proprio"], io["in.S0"], tasks, depth, no_grad_steps=skipped)[1][-1]
    loss = (output - io["in.target"]).abs().mean()
    loss.backward()
    found = {f"r{depth}.loss": loss.detach().reshape(1), f"r{depth}.grad_in.hidden_stack": stack.grad}
    for name, value in w.items():
        if value.grad is not None:
            found[f"r{depth}.grad.{name.removeprefix('head.')}"] = value.grad
    return found
