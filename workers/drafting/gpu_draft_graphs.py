"""Runs a small call of the drafter as two CUDA graphs: its first step, and the loop of all further steps.

The first step feeds the accepted pairs; its graph depends on their number and on the KV splits. The loop feeds one
draft per sequence and step; its graph depends on the number of sequences, of steps, and on the KV splits. Sequences
that need fewer drafts are padding in later steps. Graphs are captured after their first use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outrider.workers.drafting.pairs import Pairs
from outrider.workers.model.gpu.batch import GpuBatch
from outrider.workers.model.gpu.decoder import Decoder
from outrider.workers.model.gpu.graphs import Bucket, Captured
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.types.rounds.round import ints


class Drawn(NamedTuple):
    """One step's result."""

    state: Tensor  # [n, hidden]
    best: Tensor  # [n, 2] the two largest scores
    ids: Tensor  # [n] the drafts


Step = Callable[[GpuBatch, Tensor, Tensor], Drawn]
Loop = Callable[[Sequence[GpuBatch], Drawn, Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """The first step's graph. `inputs` int32: draw words, the rows whose states are drawn from, the batch."""

    inputs: Tensor
    hidden: Tensor
    run: Captured[Drawn]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """The loop's graph. `inputs` int32: draw words of all steps, then their batches."""

    inputs: Tensor
    drawn: Drawn  # of the step before
    run: Captured[tuple[list[Tensor], list[Tensor]]]


class DraftGraphs:
    """The graphs of one MTP module. `step` and `loop` are what they capture."""

    def __init__(self, step: Step, loop: Loop, decoder: Decoder) -> None:
        self._step, self._loop, self._decoder = step, loop, decoder
        self._firsts: dict[Bucket, _First] = {}
        self._loops: dict[tuple[Bucket, int], _Loop] = {}

    def fits(self, passes: Sequence[Rows]) -> bool:
        return all(self._decoder.fixed_sizes(rows) and Bucket.holds(rows) for rows in passes)

    def run(
        self, pairs: Pairs, passes: Sequence[Rows], last: IntArray, words: Sequence[IntArray]
    ) -> tuple[Tensor, Tensor]:
        """Feeds `pairs`, drafts after the pairs `last`, then feeds the drafts of each step.

        `passes`: the rows of the pairs, then of each step. `words` are each step's draw words. Scores [n, 2] and ids
        [n] of all drafts, step by step.
        """
        rows, *feeds = passes
        bucket = Bucket.of([rows], self._decoder.block_size)
        arrays = [_padded_words(words[0], bucket.rows), _padded(last, bucket.rows), *bucket.pack(rows)]
        size, chosen = sum(each.size for each in arrays), chosen_rows(pairs)
        loop = None
        if feeds:
            loop = Bucket.of(feeds, self._decoder.block_size)
            arrays += [_padded_words(each, loop.rows) for each in words[1:]]
            arrays += [array for each in feeds for array in loop.pack(each)]
        on_device = self._decoder.upload([chosen, *arrays])
        inputs = on_device[len(chosen) :]
        drawn = self._run_first(bucket, inputs[:size], pairs.hidden, on_device[: len(chosen)])
        scores, ids = [drawn.best[: len(last)]], [drawn.ids[: len(last)]]
        if loop is not None:
            counts = list(map(len, feeds))
            more = self._run_loop(loop, inputs[size:], drawn, counts)
            scores += [each[:count] for each, count in zip(more[0], counts, strict=True)]
            ids += [each[:count] for each, count in zip(more[1], counts, strict=True)]
        return torch.cat(scores), torch.cat(ids)

    def _run_first(self, bucket: Bucket, inputs: Tensor, hidden: Tensor, chosen: Tensor) -> Drawn:
        graph = self._firsts.get(bucket)
        if graph is None:
            graph = self._firsts[bucket] = self._make_first(bucket)
        graph.inputs.copy_(inputs)
        if len(chosen):
            torch.index_select(hidden, 0, chosen, out=graph.hidden[: len(chosen)])
        else:
            graph.hidden[: len(hidden)].copy_(hidden)
        return graph.run()

    def _run_loop(
        self, bucket: Bucket, inputs: Tensor, drawn: Drawn, counts: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        graph = self._loops.get((bucket, len(counts)))
        if graph is None:
            graph = self._loops[bucket, len(counts)] = self._make_loop(bucket, len(counts))
        graph.inputs.copy_(inputs)
        graph.drawn.state[: counts[0]].copy_(drawn.state[: counts[0]])
        graph.drawn.ids[: counts[0]].copy_(drawn.ids[: counts[0]])
        return graph.run()

    def _make_first(self, bucket: Bucket) -> _First:
        decoder, size = self._decoder, bucket.rows
        inputs = torch.zeros(5 * size + bucket.ints, dtype=torch.int32, device=decoder.device)
        inputs[5 * size :] = bucket.static(decoder.device)[0]
        words, wanted, own = torch.split(inputs, [4 * size, size, bucket.ints])
        batch, on_device = replace(bucket.batch(own), wanted=wanted), words.view(torch.int64)
        hidden = self._states(size)
        return _First(inputs=inputs, hidden=hidden, run=Captured(lambda: self._step(batch, hidden, on_device)))

    def _make_loop(self, bucket: Bucket, steps: int) -> _Loop:
        decoder, size = self._decoder, bucket.rows
        inputs = torch.zeros(steps * (4 * size + bucket.ints), dtype=torch.int32, device=decoder.device)
        words, own = torch.split(inputs, [steps * 4 * size, steps * bucket.ints])
        own.copy_(bucket.static(decoder.device, steps).flatten())
        by_step = words.view(torch.int64).view(steps, 2 * size).unbind()
        batches = [bucket.batch(each) for each in own.view(steps, bucket.ints).unbind()]
        drawn = Drawn(
            self._states(size),
            torch.zeros(size, 2, dtype=torch.float64, device=decoder.device),
            torch.zeros(size, dtype=torch.int64, device=decoder.device),
        )
        return _Loop(inputs=inputs, drawn=drawn, run=Captured(lambda: self._loop(batches, drawn, by_step)))

    def _states(self, size: int) -> Tensor:
        decoder = self._decoder
        return torch.zeros(size, decoder.config.hidden_size, dtype=decoder.dtype, device=decoder.device)


def chosen_rows(pairs: Pairs) -> IntArray:
    """Which rows of `pairs.hidden` are the pairs' states; empty: all of them, in order."""
    return ints() if pairs.hidden_rows is None else pairs.hidden_rows


def _padded(rows: IntArray, size: int) -> IntArray:
    return np.pad(rows, (0, size - len(rows)))


def _padded_words(words: IntArray, size: int) -> IntArray:
    """Draw words [2 n] of `size` rows, as pairs of int32. Padding draws greedily."""
    halves = words.reshape(2, -1)
    return ints(np.pad(halves, ((0, 0), (0, size - halves.shape[1]))).view(np.int32))
