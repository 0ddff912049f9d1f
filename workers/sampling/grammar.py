"""Grammars of structured outputs, compiled with llguidance. Sampler and drafter both apply them.

text/grammar_check.py has test-compiled untrusted grammars before, so compiling them here is cheap and does not crash.
"""

import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from outrider.workers.sampling.grammar_source import LIMITS, grammar_of
from outrider.workers.sampling.token_rules import Mask
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import IntArray

_KEPT = 64  # compiled grammars in the cache; copying one is cheap
_THREADS = 2  # for compiling
MOST_PLACE_S = 0.1  # CPU time for the mask at one place of an output, since the whole round waits
_MOST_TOKEN_S = 0.001  # additional time per token before the place; a resumed output has many to process
_TOKENS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """A matcher at the start of its grammar, and the time that compiling took."""

    matcher: LLMatcher
    took_s: float


class Grammars:
    """Compiles grammars for one checkpoint's tokenizer, which is read for the first grammar. One object per rank.

    Compiles in background threads, so that no round waits for a prepared grammar. Its methods are not thread-safe.
    """

    def __init__(
        self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...], limits: LLParserLimits = LIMITS
    ) -> None:
        """`limits`: llguidance's limits on a grammar's cost per token and in total."""
        self._limits = limits
        self.words = -(-vocab_size // 32)
        self.tokenizer_file = folder / "tokenizer.json"
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")  # started with the first grammar
        self._compiled: OrderedDict[str, Future[Compiled]] = OrderedDict()  # least recently used first

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        text = self.tokenizer_file.read_text(encoding="utf-8")
        return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids) or None)

    def prepare(self, params: StructuredOutputsParams) -> "Future[Compiled]":
        """Starts compiling. The future has the compiled grammar, or the error."""
        key = repr(params)
        if key not in self._compiled:
            self._compiled[key] = self._threads.submit(self._compile, params)
        self._compiled.move_to_end(key)
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key]

    def follow(self, params: StructuredOutputsParams, after: int | None) -> "Constraint":
        """The constraint for a new output. It applies after the first `after` token; None: from the start.

        Blocks until the grammar is compiled.
        """
        compiled = self.prepare(params).result()
        return Constraint(
            compiled, self.words, self._eos_token_ids, after, functools.partial(self._recompile, params, compiled)
        )

    def _compile(self, params: StructuredOutputsParams) -> Compiled:
        began = time.monotonic()
        grammar = grammar_of(params)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        return Compiled(matcher, time.monotonic() - began)

    def _recompile(self, params: StructuredOutputsParams, failed: Compiled) -> Compiled | None:
        """Compiles the grammar again for an output, after `failed` reached a limit: all its copies share one lexer.

        `failed` is removed from the cache. None if compiling takes so long that rounds cannot wait for it.
        """
        key = repr(params)
        kept = self._compiled.get(key)
        if kept is not None and kept.done() and kept.result() is failed:
            del self._compiled[key]
        return self._compile(params) if failed.took_s <= MOST_PLACE_S else None


class Constraint:
    """A grammar applied to one output. Moves to the place it is asked about: back over drafts, forward over tokens.

    `failed_at`: the first place at which computing the mask exceeded a limit, since it was last reset to None. The mask
    there is unknown.
    """

    def __init__(
        self,
        compiled: Compiled,
        words: int,
        eos_token_ids: tuple[int, ...],
        after: int | None,
        recompile: Callable[[], Compiled | None],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`recompile` returns the same grammar, not shared with other outputs. `clock`: CPU time of this thread."""
        self.words = words
        self._first, self._matcher, self._after = compiled.matcher, compiled.matcher.deep_copy(), after
        self._recompile, self._unshared = recompile, False
        self._clock = clock
        self.failed_at: int | None = None
        self._eos_token_ids = frozenset(eos_token_ids)
        self._consumed: list[int] = []
        self._only_end = np.zeros(words, dtype=np.uint32)
        for token_id in eos_token_ids:
            self._only_end[token_id // 32] |= np.uint32(1 << token_id % 32)

    def fill(self, output: IntArray, mask: Mask) -> bool:
        """Writes the tokens that may follow `output` into `mask` [words].

        Returns False if any token may follow: the grammar does not apply yet, `output` violates it (after an illegal
        draft, so the row will be discarded), or it failed at or before this place.
        """
        tokens = self._from_start(output)
        if tokens is None or (self.failed_at is not None and len(output) >= self.failed_at):
            return False
        allowed = self._fill(tokens, mask)
        if self._matcher.is_error() and self._restart_unshared():
            allowed = self._fill(tokens, mask)
        if self._matcher.is_error():
            self._matcher, self._consumed = self._first.deep_copy(), []  # a matcher with an error stays in it
            allowed = None
        if allowed is None:
            self.failed_at = len(output)
        return bool(allowed)

    def _fill(self, tokens: list[int], mask: Mask) -> bool | None:
        """Whether the mask was written (`tokens` are legal); None: it took too long."""
        ended = next((n for n, token in enumerate(tokens) if token in self._eos_token_ids), len(tokens))
        until = self._clock() + MOST_PLACE_S + _MOST_TOKEN_S * ended
        allowed = self._go_to(tokens[:ended], until)
        if allowed and (ended < len(tokens) or self._matcher.is_stopped()):
            mask[:] = self._only_end
        elif allowed:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return allowed if self._clock() <= until else None

    def _restart_unshared(self) -> bool:
        """Restarts with a grammar not shared with other outputs; False if it had one already, or cannot get one."""
        compiled = None if self._unshared else self._recompile()
        if compiled is None:
            return False
        self._first, self._unshared = compiled.matcher, True
        self._matcher, self._consumed = self._first.deep_copy(), []
        return True

    def _from_start(self, output: IntArray) -> list[int] | None:
        """The output's tokens from where the grammar applies; None if it does not apply yet."""
        if self._after is not None:
            places = np.flatnonzero(output == self._after)
            if not len(places):
                return None
            output = output[places[0] + 1 :]
        tokens: list[int] = output.tolist()
        return tokens

    def _go_to(self, tokens: list[int], until: float) -> bool:
        """Moves the matcher to the end of `tokens`. False if the grammar forbids them, or if it takes past `until`."""
        common, most = 0, min(len(tokens), len(self._consumed))
        while common < most and tokens[common] == self._consumed[common]:
            common += 1
        if common < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - common)
        self._consumed = tokens[:common]
        while len(self._consumed) < len(tokens) and self._clock() <= until:
            some = tokens[len(self._consumed) : len(self._consumed) + _TOKENS_AT_ONCE]
            taken = self._matcher.try_consume_tokens(some)
            self._consumed += some[:taken]
            if taken < len(some):
                self._matcher.compute_bitmask()  # reports an error if the lexer has reached its limit
                break
        return len(self._consumed) == len(tokens)
