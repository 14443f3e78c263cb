"""A network recorded for fixed shapes: compiled and, on a GPU, captured as CUDA graphs.

An iteration on K rows is a hundred small kernels; to launch them one by one takes longer than to compute them. So what
a decision works on gets a place that never moves, and three functions without arguments work on these places: encode
and condition, iterate, decode. The host only says "again".

Shapes are few: batches are padded to a power of two, prompts to a multiple of `PROMPT_MULTIPLE`. A sample that has
converged keeps its row, and nobody reads it any more: a GPU reads the weights once for all rows, so that removing a
row would save next to nothing and cost a recording.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdvla.model.rdvla import RDVLA, Inputs
from rdvla.model.recurrent import Conditioning, RecurrentHead

BACKEND = "inductor"
"""What `torch.compile` compiles with."""
PROMPT_MULTIPLE = 16
MOST_SHAPES = 64
"""Compilations of one function (torch's own limit of 8 is meant for code that compiles by surprise)."""

Result = TypeVar("Result")


def fuse(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return `function` compiled: once for each shape, as one graph without a break."""
    compiled = torch.compile(function, backend=BACKEND, fullgraph=True, dynamic=False)

    def call(*arguments: Any) -> Result:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            result: Result = compiled(*arguments)
            return result

    return call


def padded(count: int) -> int:
    """Return the batch size that `count` samples are recorded at: the next power of two."""
    return 1 << (count - 1).bit_length()


def warm_up(function: Callable[[], object]) -> None:
    """Call `function` twice on another stream: there, libraries allocate and choose kernels on their first calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def record(function: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """Call `function`, and return it ready to be repeated, without gradient.

    Args:
        function: works on tensors that stay where they are, and does nothing but launch kernels.
        device: where it computes. On a GPU what is returned replays one CUDA graph: its result lies always in the same
            place, until the next call. Elsewhere it is `function`, compiled by this call.
    """
    function = torch.no_grad()(function)
    function()
    if device.type != "cuda":
        return function
    with torch.cuda.device(device):
        warm_up(function)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()

    def replay(_kept: object = function) -> Result:  # what the graph reads has to live as long as the graph
        graph.replay()
        return result

    return replay


@dataclass(frozen=True)
class Places:
    """Where samples lie in a recorded batch: int64 `[B]`, on its device. Stands for their `Conditioning`."""

    rows: Tensor

    def select(self, rows: Tensor) -> "Places":
        """Keep the samples `rows` (int64 indices)."""
        return Places(self.rows[rows])


class RecordedHead:
    """A head recorded for one batch size, for `rdvla.model.decide`. Holds one decision at a time."""

    def __init__(self, head: RecurrentHead, condition: Callable[[], Conditioning], size: int) -> None:
        """Record `head` for `size` samples; `condition`, compiled, works on inputs that stay in their place."""
        config, like = head.config, head.prelude.action_queries
        latents_BKD = like.new_zeros(size, config.chunk_size, config.hidden_dim)
        self._latents_BKD, device = latents_BKD, like.device
        self._condition = record(condition, device)
        self._conditioning = self._condition()
        core, coda = fuse(head.core), fuse(head.coda)
        self._core = record(lambda: core(latents_BKD, self._conditioning), device)
        self._coda = record(lambda: coda(latents_BKD, self._conditioning), device)
        self._earlier_BKD = torch.zeros_like(latents_BKD)
        self._decode_both: Callable[[], tuple[Tensor, Tensor]] | None = None
        self._head_both = head.both  # no policy asks for it unless its rule defers

    @torch.no_grad()
    def condition(self, count: int) -> Places:
        """Compute the conditioning of what now lies in the inputs' place; the first `count` samples matter."""
        self._conditioning = self._condition()
        return Places(torch.arange(count, device=self._latents_BKD.device))

    def core(self, latents_BKD: Tensor, places: Places) -> Tensor:
        """Apply one iteration: `[B, K, D]` to `[B, K, D]`."""
        return self._at(places, latents_BKD, self._core)

    def coda(self, latents_BKD: Tensor, places: Places) -> Tensor:
        """Return normalised actions `[B, K, A]`."""
        return self._at(places, latents_BKD, self._coda)

    def both(self, before_BKD: Tensor, after_BKD: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Decode two scratchpads of every sample in one call, recorded when it is first asked for."""
        self._earlier_BKD.index_copy_(0, places.rows, before_BKD)
        self._latents_BKD.index_copy_(0, places.rows, after_BKD)
        if self._decode_both is None:
            both, earlier_BKD, latents_BKD = fuse(self._head_both), self._earlier_BKD, self._latents_BKD
            self._decode_both = record(lambda: both(earlier_BKD, latents_BKD, self._conditioning), latents_BKD.device)
        before_BKA, after_BKA = self._decode_both()
        return before_BKA[places.rows], after_BKA[places.rows]

    def _at(self, places: Places, latents_BKD: Tensor, function: Callable[[], Tensor]) -> Tensor:
        self._latents_BKD.index_copy_(0, places.rows, latents_BKD)
        return function()[places.rows]


class RecordedNetwork:
    """A network recorded for every shape of inputs that it meets, when the first of its kind comes."""

    def __init__(self, network: RDVLA) -> None:
        """Take `network`, whose weights no longer change; nothing is compiled yet."""
        self._network = network
        self._condition = fuse(lambda inputs: network.head.condition(network.encode(inputs)))
        self._recorded: dict[tuple[int, int], tuple[Inputs, RecordedHead]] = {}

    @torch.no_grad()
    def condition(self, inputs: Inputs) -> tuple[RecordedHead, Places]:
        """Encode `inputs`; what is returned takes the place of head and conditioning, until the next call."""
        count, length = inputs.ids.shape
        shape = padded(count), -(-length // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
        if shape not in self._recorded:
            self._recorded[shape] = self._record(inputs, *shape)
        place, head = self._recorded[shape]
        place.images[:count] = inputs.images
        place.ids[:count, :length] = inputs.ids
        place.lengths[:count] = inputs.lengths
        place.state[:count] = inputs.state
        return head, head.condition(count)

    def _record(self, like: Inputs, size: int, length: int) -> tuple[Inputs, RecordedHead]:
        place = Inputs(
            images=like.images.new_zeros(size, *like.images.shape[1:]),
            ids=like.ids.new_zeros(size, length),
            lengths=like.lengths.new_ones(size),
            state=like.state.new_zeros(size, like.state.shape[1]),
        )
        return place, RecordedHead(self._network.head, lambda: self._condition(place), size)
