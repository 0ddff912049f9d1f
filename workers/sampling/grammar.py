"""Grammars of structured outputs, by llguidance: checked at the edge, followed by sampler and drafter."""

import functools
import json
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from outrider.workers.sampling.token_rules import Mask
from outrider.workers.types.round import IntArray
from outrider.workers.types.structured_outputs import StructuredOutputsParams

_LIMITS = LLParserLimits(max_grammar_size=100_000, verbose_errors=False)
_KEPT = 64  # compiled grammars; a copy of one costs next to nothing
_THREADS = 2  # that compile


def grammar_of(params: StructuredOutputsParams) -> str:
    """What llguidance compiles. ValueError if the constraint is not even well-formed."""
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.grammar is not None:
        return str(llguidance.grammar_from("grammar", params.grammar))
    if params.choice is not None:
        return str(llguidance.grammar_from("choice", params.source))
    options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    schema = json.loads(params.source)
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"a JSON schema is an object, got {schema!r}")
    return LLMatcher.grammar_from_json_schema(params.source, overrides=options)  # type: ignore[arg-type]  # a TypedDict there


def check_grammar(params: StructuredOutputsParams) -> None:
    """ValueError, in one line, if the constraint cannot be followed: damaged, or beyond what is supported."""
    try:
        problem = _problem_of(grammar_of(params))
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"structured_outputs cannot be followed: {' '.join(problem.split())[:500]}")


@functools.lru_cache(maxsize=_KEPT)
def _problem_of(grammar: str) -> str:
    found, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    return messages[0] if found else ""


class Grammars:
    """Compiles for one checkpoint's tokenizer, which is read when the first grammar comes. Made once a rank.

    It does so in threads of its own, so that no round waits for a grammar that was prepared in time. One reader.
    """

    def __init__(
        self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...], limits: LLParserLimits = _LIMITS
    ) -> None:
        """`limits`: what a grammar may cost at each place, and in all."""
        self._limits = limits
        self.words = -(-vocab_size // 32)
        self._folder, self._vocab_size, self._eos_token_ids = folder, vocab_size, eos_token_ids
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")  # none before the first grammar
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()  # the last used last

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        text = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
        return LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids) or None)

    def prepare(self, params: StructuredOutputsParams) -> "Future[LLMatcher]":
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
        return Constraint(self.prepare(params).result(), self.words, self._eos_token_ids, after)

    def _compile(self, params: StructuredOutputsParams) -> LLMatcher:
        grammar = grammar_of(params)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)


class Constraint:
    """A grammar along one output. Goes to wherever it is asked about: back over drafts, forward over tokens.

    `failed_at`: the first place, of those asked about since it was None, where following it cost too much. What may
    stand there is not known.
    """

    def __init__(self, matcher: LLMatcher, words: int, eos_token_ids: tuple[int, ...], after: int | None) -> None:
        self.words = words
        self._first, self._matcher, self._after = matcher, matcher.deep_copy(), after
        self.failed_at: int | None = None
        self._eos_token_ids = frozenset(eos_token_ids)
        self._consumed: list[int] = []
        self._only_end = np.zeros(words, dtype=np.uint32)
        for token_id in eos_token_ids:
            self._only_end[token_id // 32] |= np.uint32(1 << token_id % 32)

    def fill(self, said: IntArray, mask: Mask) -> bool:
        """Writes which tokens may follow the output `said` into `mask` [words].

        False: any token, since the grammar does not hold yet, or `said` has left it (an illegal draft, behind which no
        row counts), or it failed.
        """
        tokens = self._from_start(said)
        if tokens is None:
            return False
        ended = next((n for n, token in enumerate(tokens) if token in self._eos_token_ids), len(tokens))
        stands = self._go_to(tokens[:ended])
        if stands and (ended < len(tokens) or self._matcher.is_stopped()):
            mask[:] = self._only_end
        elif stands:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            self._begin_anew(len(said))
            return False
        return stands

    def _begin_anew(self, place: int) -> None:
        """A matcher that failed never recovers, and the place that was too much may have been a mere draft's."""
        self.failed_at = place if self.failed_at is None else min(self.failed_at, place)
        self._matcher, self._consumed = self._first.deep_copy(), []

    def _from_start(self, said: IntArray) -> list[int] | None:
        """The output's tokens since the grammar holds."""
        if self._after is not None:
            places = np.flatnonzero(said == self._after)
            if not len(places):
                return None
            said = said[places[0] + 1 :]
        tokens: list[int] = said.tolist()
        return tokens

    def _go_to(self, tokens: list[int]) -> bool:
        """Whether the grammar allows `tokens`; then it stands behind them."""
        common, most = 0, min(len(tokens), len(self._consumed))
        while common < most and tokens[common] == self._consumed[common]:
            common += 1
        if common < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - common)
        taken = self._matcher.try_consume_tokens(tokens[common:])
        self._consumed = tokens[: common + taken]
        return len(self._consumed) == len(tokens)
