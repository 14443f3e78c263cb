"""The cases of each section: the head, the whole decision, batches, training; and memory, which is not timed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from rdvla.bench.machine import PeakMemory, Work
from rdvla.bench.measure import ENCODING_LIMIT, OURS, PUBLISHED, Case, Row, Variant
from rdvla.bench.networks import (
    Form,
    Start,
    contexts_of,
    decider,
    first,
    frozen,
    random_hidden,
    random_inputs,
    scratchpads,
    start_head,
    start_network,
)
from rdvla.model.config import RDVLAConfig
from rdvla.model.freeze import PRECISIONS
from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recorded import fuse, record
from rdvla.model.recurrent import Context, RecurrentHead
from rdvla.model.trace import trace
from rdvla.reference.network import PublishedNetwork, published_head
from rdvla.stops import DEFAULT_STOP, StopRule

PLAIN = tuple(Form(precision) for precision in PRECISIONS)
LOADED = (Form("float32"), Form("int8"))
"""Where more than the head at batch 1 is measured; each is one more copy of the weights."""
COMPILED = (Form("float32", compiled=True), Form("bfloat16", compiled=True))
DEEPEST = 32
PUBLISHED_RULE = StopRule("action_mse", threshold=0.0, max_depth=DEEPEST)
LATENT_RULE = StopRule("latent", threshold=0.0, max_depth=DEEPEST)
ADAPTIVE_RULE = StopRule("action_mse", threshold=0.0, max_depth=7)
"""As deep as the released policy thinks on average under its own rule."""
OPENS = 5
"""Where the gate of the deferring rule opens: it asks the Coda 4 times of 7."""
TRAINING_BATCH = 16
TRAINING_DEPTH = 32


def head_cases(
    title: str, config: RDVLAConfig, head: RecurrentHead, depths: Sequence[int], forms: Sequence[Form] = PLAIN
) -> list[Case]:
    """Return the head alone, batch 1: fixed depths, and rules that never stop: within 32 iterations, and within 7."""
    hidden, latents = random_hidden(config, 1, device=_device(head)), scratchpads(head, 1)
    contexts, published = contexts_of(hidden), published_head(head)
    starts = {form: start_head(form, ready, contexts) for form, ready in frozen(head, forms).items()}

    def case(name: str, rule: StopRule, reference: StopRule) -> Case:
        looks = rule.max_depth - OPENS + 2 if rule.defer else rule.max_depth if rule.name == "action_mse" else 1
        return Case(
            section=f"head, {title}",
            name=name,
            unit="ms",
            runs={PUBLISHED: Variant(lambda: published.decide(hidden, latents, reference))}
            | _decisions(starts, latents, rule),
            phases=head_phases(head, contexts, latents, rule.max_depth, looks),
        )

    fixed = [case(f"r = {depth}", StopRule.fixed(depth), StopRule.fixed(depth)) for depth in depths]
    return [
        *fixed,
        case(f"mse rule, {DEEPEST} iterations", PUBLISHED_RULE, PUBLISHED_RULE),
        case(f"latent rule, {DEEPEST} iterations", LATENT_RULE, PUBLISHED_RULE),
        case(f"mse rule, {ADAPTIVE_RULE.max_depth} iterations", ADAPTIVE_RULE, ADAPTIVE_RULE),
        case("the same, Coda deferred", deferring(head, contexts, latents), ADAPTIVE_RULE),
    ]


def deferring(head: RecurrentHead, contexts: dict[int, Context], latents_BKD: Tensor) -> StopRule:
    """Return `ADAPTIVE_RULE` with a gate that opens at iteration `OPENS` of this decision (or before)."""
    changes = trace(head, head.condition(contexts), latents_BKD, OPENS)["latent"][0]
    return replace(ADAPTIVE_RULE, defer=1.01 * float(changes[-1]))


@torch.no_grad()
def head_phases(
    head: RecurrentHead, contexts: dict[int, Context], latents_BKD: Tensor, depth: int, looks: int
) -> tuple[Work, Work, Work]:
    """Return the work of conditioning, of `depth` iterations and of `looks` through the Coda."""
    conditioning = head.condition(contexts)
    return (
        Work.of(lambda: head.condition(contexts)),
        Work.of(lambda: head.core(latents_BKD, conditioning), count=depth),
        Work.of(lambda: head.coda(latents_BKD, conditioning), count=looks),
    )


def decision_cases(title: str, network: RDVLA, forms: Sequence[Form] = LOADED) -> list[Case]:
    """Return encoding, and a whole decision from network inputs to normalised actions, batch 1."""
    inputs, latents = random_inputs(network.config, 1, device=_device(network)), scratchpads(network.head, 1)
    published, ours = PublishedNetwork(network), frozen(network, forms)
    starts = {form: start_network(form, ready, inputs) for form, ready in ours.items()}
    layers = network.config.head.conditioning_layers

    @torch.no_grad()
    def encode_published() -> Tensor:
        return _together(contexts_of(published.encode(inputs)), layers)

    def encoder(form: Form, ready: RDVLA) -> Callable[[], Tensor]:
        compute = fuse(ready.encode) if form.compiled else ready.encode
        encode = partial(compute, inputs)
        repeat = record(encode, _device(ready)) if form.compiled else encode
        return torch.no_grad()(lambda: _together(repeat(), layers))

    encoding, *phases = decision_phases(network, inputs, latents)
    encode = Case(
        section=f"decision, {title}",
        name="encode",
        unit="ms",
        runs={PUBLISHED: Variant(encode_published)}
        | _runs({form: encoder(form, ready) for form, ready in ours.items()}),
        phases=(encoding,),
        limit=ENCODING_LIMIT,
        relative=True,
    )
    decision = Case(
        section=f"decision, {title}",
        name=f"whole decision, r = {DEFAULT_STOP.max_depth}",
        unit="ms",
        runs={PUBLISHED: Variant(lambda: published.decide(inputs, latents, DEFAULT_STOP))}
        | _decisions(starts, latents, DEFAULT_STOP),
        phases=(encoding, *phases),
    )
    return [encode, decision]


def _together(contexts: Mapping[int, Context], layers: Sequence[int]) -> Tensor:
    states = [states for layer in layers for states in (contexts[layer].latents, contexts[layer].vision)]
    return torch.cat(states, dim=1).float()


@torch.no_grad()
def decision_phases(network: RDVLA, inputs: Inputs, latents_BKD: Tensor) -> tuple[Work, ...]:
    """Return the work of encoding and of the head at its usual depth."""
    encoding = Work.of(lambda: network.encode(inputs))
    return (encoding, *head_phases(network.head, network.encode(inputs), latents_BKD, DEFAULT_STOP.max_depth, 1))


def head_batches(
    title: str, config: RDVLAConfig, head: RecurrentHead, sizes: Sequence[int], forms: Sequence[Form] = LOADED
) -> list[Case]:
    """Return the head on batches; the released code decides for one sample at a time."""
    hidden, latents = random_hidden(config, max(sizes), device=_device(head)), scratchpads(head, max(sizes))
    published, one, ours = published_head(head), first(hidden), frozen(head, forms)

    def case(size: int) -> Case:
        contexts = contexts_of(hidden, size)
        starts = {form: start_head(form, ready, contexts) for form, ready in ours.items()}
        return Case(
            section=f"batches, {title}",
            name=f"batch {size}",
            unit="decisions/s",
            runs={PUBLISHED: Variant(lambda: published.decide(one, latents[:1], DEFAULT_STOP))}
            | _decisions(starts, latents[:size], DEFAULT_STOP),
            phases=head_phases(head, contexts, latents[:size], DEFAULT_STOP.max_depth, 1),
        )

    return [case(size) for size in sizes]


def decision_batches(title: str, network: RDVLA, sizes: Sequence[int], forms: Sequence[Form] = LOADED) -> list[Case]:
    """Return whole decisions in batches; the released code decides for one observation at a time."""
    published, ours = PublishedNetwork(network), frozen(network, forms)
    latents = scratchpads(network.head, max(sizes))
    everything = random_inputs(network.config, max(sizes), device=_device(network))

    def take(size: int) -> Inputs:
        values = (everything.images, everything.ids, everything.lengths, everything.state)
        return Inputs(*(value[:size] for value in values))

    def case(size: int) -> Case:
        starts = {form: start_network(form, ready, take(size)) for form, ready in ours.items()}
        return Case(
            section=f"batches, {title}",
            name=f"batch {size}",
            unit="decisions/s",
            runs={PUBLISHED: Variant(lambda: published.decide(take(1), latents[:1], DEFAULT_STOP))}
            | _decisions(starts, latents[:size], DEFAULT_STOP),
            phases=decision_phases(network, take(size), latents[:size]),
        )

    return [case(size) for size in sizes]


def _decisions(starts: Mapping[Form, Start], latents_BKD: Tensor, rule: StopRule) -> dict[str, Variant]:
    """Return a run of every form that decides about all samples."""
    calls = {form: decider(start, latents_BKD.to(form.dtype), rule) for form, start in starts.items()}
    return _runs(calls, len(latents_BKD))


def _runs(calls: Mapping[Form, Callable[[], Tensor]], samples: int = 1) -> dict[str, Variant]:
    """Return a run of every form; only float32 has to be exact."""
    return {str(form): Variant(call, samples, exact=form.precision == OURS) for form, call in calls.items()}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def training_cases(title: str, network: RDVLA) -> list[Case]:
    """Return one optimiser step at depth 32, gradient through the last `backprop_depth` iterations.

    The first step of each variant starts from the same weights, so their gradients can be compared.
    """
    device, latents = _device(network), scratchpads(network.head, TRAINING_BATCH)
    inputs = random_inputs(network.config, TRAINING_BATCH, device=device)
    config = network.config.head
    shape = (TRAINING_BATCH, config.chunk_size, config.action_dim)
    target = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(device)
    n_grad = min(config.backprop_depth, TRAINING_DEPTH)

    def stepper(model: RDVLA | PublishedNetwork) -> Callable[[], Tensor]:
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            predicted = model(inputs, latents, n_no_grad=TRAINING_DEPTH - n_grad, n_grad=n_grad)
            (predicted - target).abs().mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            return torch.cat([value.grad.flatten() for value in parameters if value.grad is not None])

        return step

    ours, theirs = (copy.deepcopy(network).train().requires_grad_() for _ in range(2))
    return [
        Case(
            f"training, {title}",
            f"step at mu = {TRAINING_DEPTH}, batch {TRAINING_BATCH}",
            "samples/s",
            {
                PUBLISHED: Variant(stepper(PublishedNetwork(theirs)), samples=TRAINING_BATCH),
                OURS: Variant(stepper(ours), samples=TRAINING_BATCH),
            },
            phases=(Work.of(stepper(copy.deepcopy(ours))),),
            limit=ENCODING_LIMIT,
            relative=True,
        )
    ]


def memory_rows(title: str, config: RDVLAConfig, head: RecurrentHead, depths: Sequence[int]) -> list[Row]:
    """Return what torch allocates at most for one decision, and for one training pass of the head, at each depth.

    A training pass counts the gradients; it is constant from `backprop_depth` iterations on.
    """
    contexts, latents = contexts_of(random_hidden(config, 1, device=_device(head))), scratchpads(head, 1)
    form, learner = PLAIN[0], copy.deepcopy(head).train().requires_grad_()
    start = start_head(form, frozen(head, [form])[form], contexts)

    def deciding(depth: int) -> None:
        decider(start, latents, StopRule.fixed(depth))()

    def training(depth: int) -> None:
        n_grad = min(depth, config.head.backprop_depth)
        learner(contexts, latents, n_no_grad=depth - n_grad, n_grad=n_grad).sum().backward()

    rows = []
    for name, run in (("decision", deciding), ("training pass", training)):
        for depth in depths:
            learner.zero_grad(set_to_none=True)
            with PeakMemory() as memory:
                run(depth)
            rows.append(Row(f"memory, {title}", f"{name}, r = {depth}", "MB", {OURS: [memory.peak / 1e6]}))
    return rows
