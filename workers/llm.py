"""LLM: the offline API, with the same engine as the server but no gateway. Names are vLLM's."""

import atexit
import contextlib
import hashlib
import itertools
import queue
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.serving.hosts import EngineHost, start_engine
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.text.assembler import OutputDelta, RequestAssembler
from outrider.workers.text.grammar_check import GrammarChecker
from outrider.workers.text.outputs import OutputCollector, RequestOutput, logprobs_by_token
from outrider.workers.text.request_params import resolved_params
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.closing import ClosedOnExit
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.parameters import parameters_of
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.settings import described

Prompt = str | Sequence[int]


class LLM(ClosedOnExit):
    """A loaded model. Several ranks run as local processes.

    Raises CheckpointError, ValueError or OutriderError, with a message of one line, if the model cannot be loaded or a
    setting is not allowed.
    """

    @parameters_of(EngineConfig, described(EngineConfig))
    def __init__(self, *model: Any, **settings: Any) -> None:
        config = EngineConfig(*model, **settings)
        self._seed = config.seed
        self._numbers = itertools.count()
        path = resolve_model(config.model)
        self.tokenizer, self._checker = Tokenizer.load(path), GrammarChecker(path / "tokenizer.json")
        self._host: EngineHost = start_engine(config)
        atexit.register(self.close)  # an engine's thread must not outlive the interpreter

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Outputs in the order of the prompts. For a bad prompt or parameter, raises ValueError before running any."""
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else _listed(prompts)
        requests = self._requests(listed, sampling_params)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        collected = [_Collected(request, text, self.tokenizer) for request, text in zip(requests, texts, strict=True)]
        with Progress(disable=not use_tqdm) as progress:
            task = progress.add_task("generating", total=sum(one.request.params.n for one in collected))
            at_once = [one.request for one in collected if one.request.params.stop]
            for delta in self._run(collected, _Mailbox(at_once)):
                if delta.finish_reason is not None:
                    progress.advance(task)
        return [one.result for one in collected]

    def chat(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Generates answers to one conversation or a list of them, with the model's chat template."""
        if self.tokenizer is None:
            raise ValueError("messages need a tokenizer, and this checkpoint has none: use token ids")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [self.tokenizer.encode_chat(one) for one in conversations]  # type: ignore[arg-type]  # checked above
        return self.generate(prompts, sampling_params, use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[OutputDelta]:
        """Yields deltas of the request's outputs as they are generated. Closing the iterator cancels the request."""
        requests = self._requests([prompt], sampling_params)
        return self._run([_Collected(requests[0], None, self.tokenizer)], _Mailbox(at_once=requests))

    def swap_drafter(self, checkpoint: str) -> None:
        """Replaces the MTP module (and drafting head) by another checkpoint's; returns when it is in use.

        Running requests continue, and output tokens do not change. Raises OutriderError if it does not fit the model.
        """
        self._host.engine.swap_drafter(str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint)

    def status(self) -> list[RankStatus]:
        """The status of each rank: rounds, requests and time spent computing."""
        return self._host.statuses

    def close(self) -> None:
        """Stops the engine and its processes. Unfinished requests fail with an error."""
        atexit.unregister(self.close)
        self._checker.close()
        self._host.close()

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        """One checked request per prompt. All are checked before any is submitted."""
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ValueError(
                f"sampling_params must be one, or one per prompt: got {len(each)} for {len(prompts)} prompts"
            )
        for one in each:
            if not isinstance(one, SamplingParams):
                raise ValueError(f"sampling_params must be SamplingParams, got {one!r}")
        return [self._request(prompt, own) for prompt, own in zip(prompts, each, strict=True)]

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        number = next(self._numbers)
        token_ids = tuple(self._encode(prompt))
        params = resolved_params(params, self.tokenizer, token_ids)
        request = Request(
            request_id=f"llm-{number}",
            prompt_token_ids=token_ids,
            params=params,
            seed=params.seed if params.seed is not None else _derived_seed(self._seed, number),
        )
        has_tokenizer = self.tokenizer is not None
        self._host.engine.info.check(request.prompt_token_ids, params, has_tokenizer=has_tokenizer)
        if params.structured_outputs is not None:
            self._checker.check(params.structured_outputs)
        return request

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, Sequence):
            raise ValueError(f"prompt must be a text or a list of token ids, got {reprlib.repr(prompt)}")
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise ValueError("prompt must be token ids: this checkpoint has no tokenizer")
        return self.tokenizer.encode(prompt) if prompt else ()

    def _run(self, collected: Sequence["_Collected"], mailbox: "_Mailbox") -> Iterator[OutputDelta]:
        """Submits the requests and yields every delta. An error, Ctrl-C or a closed iterator cancels the others."""
        engine = self._host.engine
        by_id = {one.request.request_id: one for one in collected}
        try:
            for one in collected:
                engine.submit(one.request, mailbox.put)
            unfinished = sum(one.request.params.n for one in collected)
            while unfinished:
                for chunk in mailbox.take():
                    delta = by_id[chunk.request_id].add(chunk)
                    unfinished -= delta.finish_reason is not None
                    if delta.must_cancel:
                        engine.cancel(chunk.request_id, delta.index)
                    yield delta
        except EngineStoppedError as error:
            raise EngineStoppedError(self._host.explain(str(error))) from None
        finally:
            for one in collected:
                if not one.finished:
                    engine.cancel(one.request.request_id)


class _Mailbox:
    """Chunks from the engine's thread for the caller's thread, which is woken as rarely as possible.

    It is woken for finish reasons, errors, and all chunks of the requests `at_once`, which are streamed or may contain
    a stop string. Waking it slows a small model's rounds noticeably.
    """

    def __init__(self, at_once: Sequence[Request]) -> None:
        self._at_once = {request.request_id for request in at_once}
        self._waiting: list[SequenceChunk] = []
        self._ready: queue.SimpleQueue[list[SequenceChunk]] = queue.SimpleQueue()

    def put(self, chunks: Sequence[SequenceChunk]) -> None:
        self._waiting.extend(chunks)
        if any(chunk.finish_reason is not None or chunk.error or chunk.request_id in self._at_once for chunk in chunks):
            self._ready.put(self._waiting)
            self._waiting = []

    def take(self) -> list[SequenceChunk]:
        """Waits with a timeout of one second, since Ctrl-C just before a wait is only handled when the wait ends."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=1.0)


class _Collected:
    """A running request and its result so far."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self._tokenizer = tokenizer
        self._assembler = RequestAssembler(tokenizer, request.params, len(request.prompt_token_ids))
        wants_logprobs = request.params.logprobs is not None
        self._collectors = [
            OutputCollector(index, request.seed, tokenizer, wants_logprobs) for index in range(request.params.n)
        ]
        self.result = RequestOutput(
            prompt=prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=[collector.output for collector in self._collectors],
            prompt_logprobs=None if request.params.prompt_logprobs is None else [None],
        )

    @property
    def finished(self) -> bool:
        return self._assembler.finished

    def add(self, chunk: SequenceChunk) -> OutputDelta:
        if chunk.error:
            raise EngineStoppedError(chunk.error)
        delta = self._assembler.add(chunk)
        self._collectors[chunk.index].add(delta)
        if self.result.prompt_logprobs is not None:
            self.result.prompt_logprobs += logprobs_by_token(delta.prompt_logprobs, self._tokenizer)
        self.result.num_cached_tokens = self._assembler.usage.cached_tokens
        return delta


def _listed(prompts: Iterable[Prompt]) -> list[Prompt]:
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a text, or a list of texts and of lists of token ids, got {prompts!r}")
    return list(prompts)


def _derived_seed(seed: int, number: int) -> int:
    """A request's seed, derived from the engine's: runs are repeatable, and no two requests share noise."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
