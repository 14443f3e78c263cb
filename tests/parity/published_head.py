"""Cases in the recorded format, computed by the plain form of the released head (`rdvla.reference.head`)."""

import itertools
import json
import math

import torch
from safetensors.torch import save_file

from rdvla.checkpoints.names import part
from rdvla.reference.head import Hidden, PublishedHead, project_state

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


def run(w, config, stack, state, scratchpad, tasks, depth, no_grad_steps=0):
    """Return the states `[B, K, D]` and the outputs `[B, K, A]` after each iteration."""
    head = PublishedHead(part(w, "head."), config)
    layers = range(stack.shape[1])
    hidden = Hidden(
        tasks={layer: stack[:, layer, :tasks] for layer in layers},
        latents={layer: stack[:, layer, tasks:] for layer in layers},
        state=project_state(part(w, "proprio_projector."), state),
    )
    injected = head.prelude(hidden)
    states, outputs = [], []
    for step in range(depth):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= no_grad_steps):
            scratchpad = head.step(scratchpad, injected, hidden)
        states.append(scratchpad)
        outputs.append(head.decode(scratchpad, hidden))
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
