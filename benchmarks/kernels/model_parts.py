"""A model's compiled parts with one sequence in their cache, whole or with parts left out, so that parts can be timed.

What a part costs is the difference between a round with it and a round without it: a stage of no layers (embedding,
norm, Python), attention alone, attention with the dense products, all. Every row is of a held-out text.
"""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common.prompts import prompts
from benchmarks.kernels.linears import weight_bytes
from outrider.kernels.cpu.context import DRAW, Context
from outrider.kernels.cpu.library import FLOAT32, Layer, LinearStruct, MlpStruct, StageStruct
from outrider.kernels.cpu.packing import Arena, gates_beside_ups, packed
from outrider.workers.model.compiled.loading import CompiledLoader
from outrider.workers.model.compiled.model import CompiledModules, CompiledStage
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.draft_head import draft_head_ids
from outrider.workers.model.rows import Rows
from outrider.workers.model.weights import Checkpoint
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.model.model_config import ModelConfig

BLOCK_SIZE = 16
MOST_ROWS = 16
PLACES = 8  # of the text that rows are taken from in turn: they choose different experts
_TINY = 16  # width of the MLP that stands for none


class OpenStage(CompiledStage):
    """A stage whose layers can be changed or left out. Variants share its weights and its cache."""

    def variant(self, change: Callable[[Layer], None], layers: int | None = None) -> "OpenStage":
        """Its first `layers`, each changed."""
        other = copy.copy(self)
        other._layers = type(self._layers).from_buffer_copy(self._layers)
        for layer in other._layers:
            change(layer)
        other._stage = StageStruct.from_buffer_copy(self._stage)
        other._stage.layers = other._layers
        other._stage.count = len(other._layers) if layers is None else layers
        return other

    @property
    def one_row_bytes(self) -> int:
        """Weights that a round of one row reads, but for the head."""
        return sum(one_row_bytes(layer, self._loader.shape) for layer in self._layers)


def one_row_bytes(layer: Layer, shape: Any) -> int:
    """Weights of a layer that one row reads."""
    attention = layer.attention
    read = [attention.down, attention.query_up, attention.output]
    if shape.by_head:
        read.append(attention.key_value_up)
    else:
        read += [up[head] for up in (attention.key_up, attention.value_up) for head in range(shape.heads)]
    if layer.routed:
        expert = layer.routed.contents.slots[0]
        read += [layer.router, *[expert.gate_up, expert.down] * shape.chosen]
    if layer.shared or not layer.routed:
        read += [layer.dense.gate_up, layer.dense.down]
    return sum(map(weight_bytes, read))


class Loaded:
    """A model at the end of a text of `longest` tokens, `threads` computing."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        longest: int,
        dtype: torch.dtype,
        quantization: str | None = None,
        cache: WeightCache | None = None,
    ) -> None:
        self.config, checkpoint = ModelConfig.load(path), Checkpoint(path)
        self.context = Context(threads)
        self.loader = CompiledLoader(
            self.config, checkpoint, dtype=dtype, quantization=quantization, block_size=BLOCK_SIZE, cache=cache
        )
        self.stage = OpenStage(self.context, self.loader, range(self.config.num_hidden_layers))
        self.head_ids = draft_head_ids(path, self.config)
        self.longest = longest
        self._blocks = np.arange(-(-(longest + MOST_ROWS + 1) // BLOCK_SIZE))
        self._text = text_tokens(path, self.config.vocab_size, longest + PLACES * MOST_ROWS)
        self.stage.allocate_cache(len(self._blocks))
        self._arena = Arena()
        self.hidden = self._prefill()

    @property
    def head(self) -> LinearStruct:
        assert self.stage.head is not None, "a stage of all layers has the head"
        return self.stage.head

    def _prefill(self) -> Tensor:
        """Puts the text into the cache; the states of its last chunk."""
        hidden = torch.empty(0)
        for first in range(0, self.longest, 512):
            hidden = self.stage.run(self._rows(first, min(first + 512, self.longest)), None)
        return hidden

    def rows(self, count: int, context: int) -> Callable[[], Rows]:
        """Gives rounds of `count` rows after `context` tokens, each with other tokens of the text."""
        places = itertools.cycle(range(PLACES))
        each = [self._rows(context, context + count, self.longest + place * MOST_ROWS) for place in range(PLACES)]
        return lambda: each[next(places)]

    def layers(self, stage: OpenStage, count: int, context: int) -> Callable[[], object]:
        """A call to be timed: a round of `count` rows through the layers of `stage`, a variant of this model's own."""
        rows = self.rows(count, context)
        return lambda: stage.run(rows(), None)

    def round(self, count: int, context: int, temperature: float) -> Callable[[], object]:
        """The same through all layers, the head, and a draw for every row."""
        rows, which, how = self.rows(count, context), np.arange(count), draws(count, temperature)
        return lambda: self.context.sample(self.head, self.stage.run(rows(), None), which, how)

    def draft(self, module: CompiledModules, depth: int, context: int, temperature: float) -> Callable[[], object]:
        """Feeding the module one pair, then `depth` drafts."""
        pair, hidden = self._rows(context, context + 1, mtp=True), self.hidden[-1:]
        last, depths, how = np.zeros(1, dtype=np.int64), np.array([depth]), draws(1, temperature)
        return lambda: module.draft(pair, hidden, last, depths, how)

    def _rows(self, first: int, end: int, at: int | None = None, *, mtp: bool = False) -> Rows:
        at = first if at is None else at
        positions = np.arange(first, end)
        return Rows(
            token_ids=self._text[at : at + end - first],
            rope_positions=positions,
            cache_positions=positions + int(mtp),
            query_offsets=np.array([0, end - first]),
            write_from=np.array([0]),
            block_offsets=np.array([0, len(self._blocks)]),
            block_ids=self._blocks,
            first_slots=np.array([int(mtp)]),
        )

    def without_routing(self) -> OpenStage:
        """Every layer's MLP is a dense one: the first layers' own, then the shared experts."""
        return self.stage.variant(_unroute)

    def attention_alone(self) -> OpenStage:
        """MLPs next to nothing."""
        hidden = self.config.hidden_size
        tiny = MlpStruct(
            gate_up=packed(self._arena, torch.zeros(2 * _TINY, hidden), FLOAT32, gates_beside_ups(_TINY)),
            down=packed(self._arena, torch.zeros(hidden, _TINY), FLOAT32),
            width=_TINY,
        )

        def shrink(layer: Layer) -> None:
            layer.routed, layer.shared, layer.dense = None, 0, tiny

        return self.stage.variant(shrink)

    def first_layers(self, count: int) -> OpenStage:
        return self.stage.variant(lambda layer: None, count)

    def module(self, head_ids: NDArray[np.int32] | None) -> CompiledModules:
        """The MTP module with a head of `head_ids`, the text in its cache."""
        module = CompiledModules(self.stage, self.loader, head_ids)
        module.allocate_cache(len(self._blocks))
        none = np.empty(0, dtype=np.int64)
        for first in range(0, self.longest, 512):
            rows = self._rows(first, min(first + 512, self.longest), mtp=True)
            states = self.hidden[:1].expand(len(rows), -1)
            module.draft(rows, states, none, none, draws(0, 0))
        return module


def _unroute(layer: Layer) -> None:
    if layer.routed and not layer.shared:
        raise ValueError("this model has no shared experts to stand for dense MLPs")
    layer.routed = None


def draws(count: int, temperature: float, top_p: float = 1.0) -> NDArray[Any]:
    """How `count` rows of one sequence are drawn."""
    each = np.zeros(count, dtype=DRAW)
    each["sequence_key"], each["position"] = 1, np.arange(count)
    each["temperature"], each["top_p"] = temperature, top_p
    return each


def text_tokens(path: Path, vocab: int, count: int) -> NDArray[np.int64]:
    """Held-out code, one text after another; without a tokenizer, tokens by chance."""
    tokenizer = Tokenizer.load(path)
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocab, count)
    texts = itertools.cycle(prompts("code", 1000))
    tokens = itertools.chain.from_iterable(tokenizer.encode(text) for text in texts)
    return np.fromiter(itertools.islice(tokens, count), dtype=np.int64, count=count)
