"""A request that goes on in another engine says what it would have said in the first, whatever it had by then."""

import queue
from collections.abc import Iterator

import pytest

from outrider import SamplingParams
from outrider.workers.config import EngineConfig
from outrider.workers.engine.handle import EngineHandle
from outrider.workers.serving.hosts import EngineHost, start_engine
from outrider.workers.types.requests.request import OutputSoFar, Request, SequenceChunk

PROMPT = tuple(range(40, 75))
TOKENS = 24


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[EngineHandle, EngineHandle]]:
    """Two of equal numerics, of which the second has computed other things before."""
    config = EngineConfig(kv_cache_memory_bytes=64 << 20, max_num_batched_tokens=16)
    hosts: list[EngineHost] = [start_engine(config), start_engine(config)]
    yield hosts[0].engine, hosts[1].engine
    for host in hosts:
        host.close()


def said(engine: EngineHandle, params: SamplingParams, resumed: tuple[OutputSoFar, ...] = ()) -> dict[int, list[int]]:
    """What the engine generated, by output."""
    chunks: queue.SimpleQueue[list[SequenceChunk]] = queue.SimpleQueue()
    request = Request(request_id="r", prompt_token_ids=PROMPT, params=params, seed=11, resumed=resumed)
    tokens: dict[int, list[int]] = {output.index: [] for output in request.outputs}
    engine.submit(request, chunks.put)
    running = len(tokens)
    while running:
        for chunk in chunks.get(timeout=60):
            assert not chunk.error
            tokens[chunk.index] += chunk.token_ids
            running -= chunk.finish_reason is not None
    return tokens


@pytest.mark.parametrize("speculation", ["off", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_resumed_request_says_the_rest(
    engines: tuple[EngineHandle, EngineHandle], temperature: float, speculation: str
) -> None:
    params = SamplingParams(
        n=1 if temperature == 0 else 2,
        temperature=temperature,
        max_tokens=TOKENS,
        min_tokens=TOKENS,
        speculation=speculation,
    )
    whole = said(engines[0], params)

    for had in (0, 1, 7, TOKENS - 1):
        last = len(whole) - 1  # the others have finished
        resumed = (OutputSoFar(index=last, token_ids=tuple(whole[last][:had])),)
        assert said(engines[1], params, resumed) == {last: whole[last][had:]}, had


def test_the_shared_prompt_of_resumed_outputs_is_computed_once(engines: tuple[EngineHandle, EngineHandle]) -> None:
    params = SamplingParams(n=3, max_tokens=TOKENS, ignore_eos=True)
    whole = said(engines[0], params)
    had = {0: 5, 1: 2, 2: 9}

    resumed = tuple(OutputSoFar(index=index, token_ids=tuple(whole[index][:count])) for index, count in had.items())

    assert said(engines[1], params, resumed) == {index: whole[index][count:] for index, count in had.items()}


def test_an_output_that_is_complete_cannot_be_resumed(engines: tuple[EngineHandle, EngineHandle]) -> None:
    resumed = (OutputSoFar(index=0, token_ids=(5,) * TOKENS),)

    with pytest.raises(ValueError, match="output 0 has 24 tokens, and is complete"):
        said(engines[0], SamplingParams(max_tokens=TOKENS), resumed)
