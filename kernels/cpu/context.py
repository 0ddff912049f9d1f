"""Calls of the compiled kernels: one call runs a stage over a round, samples tokens, or drafts.

Reference: the torch path (workers/model, workers/sampling), which tests compare with.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_double, c_int64, c_uint64, c_void_p
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import ChainStruct, LinearStruct, Module, RowsStruct, ShapeStruct, StageStruct

IntArray = NDArray[np.int64]
Allowing = Callable[[int, int], NDArray[np.uint32] | None]  # the token mask of (sequence, draft); None: all allowed

# The sampling parameters of one row, as in src/rules.h.
_NUMPY_KINDS = {c_uint64: np.uint64, c_int64: np.int64, c_double: np.float64, c_void_p: np.uint64}
DRAW = np.dtype([(name, _NUMPY_KINDS[kind]) for name, kind in library.Draw._fields_])  # every field has 8 bytes
_SPINS = 2000  # pauses, about 40 us: longer than between a round's calls, shorter than Python's work between rounds


class DraftHead(NamedTuple):
    """A projection onto the vocabulary, or onto the tokens `ids`, ascending: this rank's slice of `outputs`."""

    linear: LinearStruct
    outputs: int
    ids: NDArray[np.int32] | None


class ExchangeError(Exception):
    """An exchange with other ranks failed. `purpose` indexes library.PURPOSES, `code` is the group's error code."""

    def __init__(self, outcome: int) -> None:
        self.purpose, self.code = outcome >> 32, outcome & 0xFFFFFFFF
        super().__init__(f"an exchange of {library.PURPOSES[self.purpose]} failed ({self.code})")


class Context:
    """A team of threads and the working memory of its rounds. Use it from one thread at a time.

    `shared_cores`: other processes use these cores, so threads do not spin.
    """

    def __init__(self, threads: int, shared_cores: bool = False) -> None:
        self._library = library.load()
        self._handle: int | None = self._library.outrider_open(threads)
        self._team = (self._handle, threads, 0 if shared_cores else _SPINS)

    def twin(self) -> "Context":
        """A second team of the same size, with its own memory, for calls while a thread of this team waits."""
        _, threads, spins = self._team
        return Context(threads, shared_cores=not spins)

    def close(self) -> None:
        if self._handle is not None:
            self._library.outrider_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    def linear(self, linear: LinearStruct, x: Tensor) -> Tensor:
        """`x` [n, inputs] float32 -> [n, outputs] float32."""
        x = x.contiguous()
        out = torch.empty(x.shape[0], linear.outputs)
        self._library.outrider_linear(*self._team, linear, x.shape[0], x.data_ptr(), out.data_ptr())
        return out

    def stage(self, shape: ShapeStruct, stage: StageStruct, rows: RowsStruct, hidden: Tensor) -> None:
        """Runs a stage's layers over `hidden` [rows, hidden] float32, in place; the first stage embeds into it.

        ExchangeError if another rank that shares the layers fails.
        """
        if outcome := self._library.outrider_stage(*self._team, shape, stage, rows, hidden.data_ptr()):
            raise ExchangeError(outcome)

    def sample(
        self, head: LinearStruct, hidden: Tensor, which: IntArray, draws: NDArray[Any]
    ) -> tuple[Tensor, IntArray]:
        """Logits [n, vocab] float32 of rows `which` [n] of `hidden`, and a token sampled from each with `draws` [n]."""
        logits = uninitialised(len(which), head.outputs)
        return logits, self._sampled(head, hidden, which, draws, logits, None)

    def sample_with_leads(
        self, head: LinearStruct, hidden: Tensor, which: IntArray, draws: NDArray[Any]
    ) -> tuple[IntArray, NDArray[np.float64]]:
        """The tokens of `sample`, and each score's lead over the next best."""
        logits, leads = uninitialised(len(which), head.outputs), np.empty(len(which))
        return self._sampled(head, hidden, which, draws, logits, leads.ctypes.data), leads

    def _sampled(
        self,
        head: LinearStruct,
        hidden: Tensor,
        which: IntArray,
        draws: NDArray[Any],
        logits: Tensor,
        leads: int | None,
    ) -> IntArray:
        tokens = np.empty(len(which), dtype=np.int64)
        if len(which):
            self._library.outrider_sample(
                *self._team, head, hidden.data_ptr(), which.ctypes.data, len(which), draws.ctypes.data,
                logits.data_ptr(), tokens.ctypes.data, leads,
            )  # fmt: skip
        return tokens

    def draw(self, logits: Tensor, draws: NDArray[Any]) -> IntArray:
        """Tokens sampled from `logits` [n, vocab] float32."""
        logits = logits.contiguous()
        tokens = np.empty(len(logits), dtype=np.int64)
        if len(logits):
            self._library.outrider_draw(
                *self._team, logits.data_ptr(), *logits.shape, draws.ctypes.data, tokens.ctypes.data
            )
        return tokens

    def draft(
        self,
        shape: ShapeStruct,
        modules: "ctypes.Array[Module]",
        head: DraftHead,
        pairs: RowsStruct,
        hidden: Tensor,
        last_pairs: IntArray,
        depths: IntArray,
        steps: int,
        draws: NDArray[Any],
        allowed: Allowing | None = None,
        chain: ChainStruct | None = None,
        stops: NDArray[np.float64] | None = None,
    ) -> tuple[IntArray, NDArray[np.float64], IntArray]:
        """Processes `pairs` with the states `hidden` [pairs, hidden]; then drafts after `last_pairs[i]`.

        Sequence i gets up to `depths[i]` drafts; its row of `stops` [n, 7] may end it early. `draws[i]` are the
        sampling parameters of its first draft. `allowed(i, j)` is the mask of its draft j, from 1 on, if a grammar
        constrains it. `steps` is the largest depth of all data groups. `chain` is for several modules. ExchangeError:
        as `stage`.

        Returns the tokens sequence by sequence [sum(depths)], each score's lead over the next best, and the number of
        drafts of each sequence.
        """
        deep = depths.tolist()
        *firsts, total = accumulate(deep, initial=0)
        going = np.array([*zip(last_pairs.tolist(), deep, firsts, strict=True)], dtype=np.int64)  # as library.Going
        drafts = np.empty(total, dtype=np.int64)
        leads, made = np.empty(len(drafts)), np.zeros(len(depths), dtype=np.int64)
        states = uninitialised(hidden.shape[0] + len(depths) * (len(modules) - 1), shape.hidden)
        outcome = self._library.outrider_draft(
            *self._team, shape, modules, len(modules), head.linear, head.outputs,
            None if head.ids is None else head.ids.ctypes.data, pairs, hidden.data_ptr(), chain, states.data_ptr(),
            going.ctypes.data, len(depths), steps, draws.ctypes.data,
            None if stops is None else stops.ctypes.data, drafts.ctypes.data, leads.ctypes.data, made.ctypes.data,
            library.REMASK() if allowed is None else _Remasked(allowed, len(depths)).function,
        )  # fmt: skip
        if outcome:
            raise ExchangeError(outcome)
        return drafts, leads, made


def uninitialised(*shape: int) -> Tensor:
    """Uninitialised float32 memory, by numpy: between two rounds torch's allocator takes ten times as long."""
    return torch.from_numpy(np.empty(shape, dtype=np.float32))


class _Remasked:
    """`allowed` as a callback for the kernels. Keeps the last mask of each of `count` sequences alive."""

    def __init__(self, allowed: Allowing, count: int) -> None:
        self._allowed = allowed
        self._masks: list[NDArray[np.uint32] | None] = [None] * count
        self.function = library.REMASK(self._fill)

    def _fill(self, which: int, depth: int, out: Any) -> None:
        mask = self._masks[which] = self._allowed(which, depth)
        if mask is not None:
            out.contents.words, out.contents.count = mask.ctypes.data, len(mask)
