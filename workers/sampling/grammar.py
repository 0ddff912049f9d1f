"""Grammars of structured outputs, by llguidance: followed by sampler and drafter.

Untrusted ones were compiled before, by text/grammar_check.py: what is compiled here costs little, and does not crash.
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
from outrider.workers.types.round import IntArray
from outrider.workers.types.structured_outputs import StructuredOutputsParams

_KEPT = 64  # compiled grammars; a copy of one costs next to nothing
_THREADS = 2  # that compile
MOST_PLACE_S = 0.1  # of computing, to go to one place of an output and find its mask: others wait meanwhile
_MOST_TOKEN_S = 0.001  # more for each token on the way, of which an output that goes on elsewhere has many
_TOKENS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar at its start, and how long compiling took."""

    matcher: LLMatcher
    took_s: float


class Grammars:
    """Compiles for one checkpoint's tokenizer, which is read when the first grammar comes. Made once a rank.

    It does so in threads of its own, so that no round waits for a grammar that was prepared in time. One reader.
    """

    def __init__(
        self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...], limits: LLParserLimits = LIMITS
    ) -> None:
        """`limits`: what a grammar may cost at each place, and in all."""
        self._limits = limits
        self.words = -(-vocab_size // 32)
        self.tokenizer_file = folder / "tokenizer.json"
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")  # none before the first grammar
        self._compiled: OrderedDict[str, Future[Compiled]] = OrderedDict()  # the last used last

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        text = self.tokenizer_file.read_text(encoding="utf-8")
        return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids) or None)

    def prepare(self, params: StructuredOutputsParams) -> "Future[Compiled]":
        """Done once the grammar can be followed at once; then with what went wrong, if something did."""
        key = repr(params)
        if key not in self._compiled:
            self._compiled[key] = self._threads.submit(self._compile, params)
        self._compiled.move_to_end(key)
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key]

    def follow(self, params: StructuredOutputsParams, after: int | None) -> "Constraint":
        """A grammar at the start of an output; `after` is the token behind which it holds, None: from the start.

        Waits where it was not prepared in time.
        """
        compiled = self.prepare(params).result()
        return Constraint(
            compiled, self.words, self._eos_token_ids, after, functools.partial(self._compile_anew, params, compiled)
        )

    def _compile(self, params: StructuredOutputsParams) -> Compiled:
        began = time.monotonic()
        grammar = grammar_of(params)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        return Compiled(matcher, time.monotonic() - began)

    def _compile_anew(self, params: StructuredOutputsParams, worn: Compiled) -> Compiled | None:
        """For an output that `worn` failed, whose lexer all outputs under it share: it is not reused from now on.

        None where that took so long that rounds must not wait for it.
        """
        key = repr(params)
        kept = self._compiled.get(key)
        if kept is not None and kept.done() and kept.result() is worn:
            del self._compiled[key]
        return self._compile(params) if worn.took_s <= MOST_PLACE_S else None


class Constraint:
    """A grammar along one output. Goes to wherever it is asked about: back over drafts, forward over tokens.

    `failed_at`: the first place, of those asked about since it was None, where following it cost too much. What may
    stand there is not known.
    """

    def __init__(
        self,
        compiled: Compiled,
        words: int,
        eos_token_ids: tuple[int, ...],
        after: int | None,
        compile_anew: Callable[[], Compiled | None],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`compile_anew`: the same grammar, shared with no other output. `clock`: seconds that this thread computed."""
        self.words = words
        self._first, self._matcher, self._after = compiled.matcher, compiled.matcher.deep_copy(), after
        self._compile_anew, self._is_own = compile_anew, False
        self._clock = clock
        self.failed_at: int | None = None
        self._eos_token_ids = frozenset(eos_token_ids)
        self._consumed: list[int] = []
        self._only_end = np.zeros(words, dtype=np.uint32)
        for token_id in eos_token_ids:
            self._only_end[token_id // 32] |= np.uint32(1 << token_id % 32)

    def fill(self, said: IntArray, mask: Mask) -> bool:
        """Writes which tokens may follow the output `said` into `mask` [words].

        False: any token, since the grammar does not hold yet, or `said` has left it (an illegal draft, behind which no
        row counts), or it failed there or before.
        """
        tokens = self._from_start(said)
        if tokens is None or (self.failed_at is not None and len(said) >= self.failed_at):
            return False
        stands = self._fill(tokens, mask)
        if self._matcher.is_error() and self._begin_as_own():
            stands = self._fill(tokens, mask)
        if self._matcher.is_error():
            self._matcher, self._consumed = self._first.deep_copy(), []  # one that failed never recovers
            stands = None
        if stands is None:
            self.failed_at = len(said)
        return bool(stands)

    def _fill(self, tokens: list[int], mask: Mask) -> bool | None:
        """Whether the mask was written; None: it took too long."""
        ended = next((n for n, token in enumerate(tokens) if token in self._eos_token_ids), len(tokens))
        until = self._clock() + MOST_PLACE_S + _MOST_TOKEN_S * ended
        stands = self._go_to(tokens[:ended], until)
        if stands and (ended < len(tokens) or self._matcher.is_stopped()):
            mask[:] = self._only_end
        elif stands:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return stands if self._clock() <= until else None

    def _begin_as_own(self) -> bool:
        """False if it did so before: then it is this output that costs too much, and no other."""
        compiled = None if self._is_own else self._compile_anew()
        if compiled is None:
            return False
        self._first, self._is_own = compiled.matcher, True
        self._matcher, self._consumed = self._first.deep_copy(), []
        return True

    def _from_start(self, said: IntArray) -> list[int] | None:
        """The output's tokens since the grammar holds."""
        if self._after is not None:
            places = np.flatnonzero(said == self._after)
            if not len(places):
                return None
            said = said[places[0] + 1 :]
        tokens: list[int] = said.tolist()
        return tokens

    def _go_to(self, tokens: list[int], until: float) -> bool:
        """Whether the grammar allows `tokens`; then it stands behind them, if that did not take until after `until`."""
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
                self._matcher.compute_bitmask()  # a lexer with too many states refuses any token, and says so here only
                break
        return len(self._consumed) == len(tokens)
