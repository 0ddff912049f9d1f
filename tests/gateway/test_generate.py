"""What a Generate call answers when all goes well."""

import asyncio
from pathlib import Path

import pytest
from fakes import EOS, FakeEngine
from gateway.harness import pb, running, stopping, tokens

from outrider.workers.text.tokenizer import Tokenizer


def _joined(events: list[pb.GenerateResponse], index: int = 0) -> tuple[list[int], str]:
    outputs = [event.output for event in events if event.HasField("output") and event.output.index == index]
    return [token_id for output in outputs for token_id in output.token_ids], "".join(output.text for output in outputs)


def _says(model: Path, text: str) -> FakeEngine:
    """An engine that answers every request with `text` and end-of-sequence."""
    tokenizer = Tokenizer.load(model)
    assert tokenizer is not None
    return FakeEngine(lambda request, index: [*tokenizer.encode(text)[1:], EOS])


def test_accepted_comes_first_then_deltas_then_finished_with_the_usage(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(per_round=lambda given: 3)) as cluster:
            events = await cluster.events(tokens(5, 6, 7, request_id="one", stopping=stopping(max_tokens=7)))

            assert events[0].accepted.request_id == "one"
            assert events[0].accepted.prompt_tokens == 3
            assert events[0].accepted.fingerprint == "feedbeef"
            assert {event.WhichOneof("event") for event in events[1:-1]} == {"output"}
            assert _joined(events)[0] == [107, 108, 109, 110, 111, 112, 113]
            last = events[-1].finished
            assert last.reason == pb.FINISH_REASON_LENGTH
            assert last.WhichOneof("stop_reason") is None
            usage = last.usage
            assert (usage.prompt_tokens, usage.completion_tokens, usage.rounds) == (3, 7, 3)
            assert (usage.drafted, usage.accepted) == (7, 4)
            assert list(usage.drafted_per_position) == [3, 2, 2]
            assert list(usage.accepted_per_position) == [2, 2]
            assert list(usage.rounds_per_depth) == [0, 1, 0, 2]

    asyncio.run(scenario())


def test_text_is_generated_from_a_prompt_and_end_of_sequence_is_a_token_but_no_text(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, _says(model, "the lazy dog, 你好 🎉")) as cluster:
            events = await cluster.events(pb.GenerateRequest(prompt="the quick"))

            token_ids, text = _joined(events)
            assert text == "the lazy dog, 你好 🎉"
            assert token_ids[-1] == EOS
            assert events[-1].finished.reason == pb.FINISH_REASON_STOP
            assert events[-1].finished.WhichOneof("stop_reason") is None
            tokenizer = Tokenizer.load(model)
            assert tokenizer is not None
            assert list(cluster.engine.submitted[0].prompt_token_ids) == tokenizer.encode("the quick")

    asyncio.run(scenario())


def test_messages_go_through_the_chat_template(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, _says(model, "fine")) as cluster:
            messages = pb.Messages(messages=[pb.Message(role="user", content="how are you")])
            events = await cluster.events(pb.GenerateRequest(messages=messages))

            assert _joined(events)[1] == "fine"
            tokenizer = Tokenizer.load(model)
            assert tokenizer is not None
            prompt = cluster.engine.submitted[0].prompt_token_ids
            rendered = "<｜begin▁of▁sentence｜><｜User｜>how are you<｜Assistant｜>"
            assert tokenizer.decode(prompt, skip_special_tokens=False) == rendered

    asyncio.run(scenario())


def test_absent_parameters_take_their_defaults_and_the_drawn_seed_is_returned(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=20, per_round=lambda given: 8)) as cluster:
            first = await cluster.events(tokens(5, 6))
            second = await cluster.events(tokens(5, 6))
            given = await cluster.events(tokens(5, 6, sampling=pb.SamplingParameters(seed=-3, temperature=0)))

            params = cluster.engine.submitted[0].params
            assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.n) == (1, 1, 0, None, 1)
            assert len(_joined(first)[0]) == 18
            assert first[-1].finished.reason == pb.FINISH_REASON_LENGTH
            seeds = [request.seed for request in cluster.engine.submitted]
            assert seeds == [events[0].accepted.seed for events in (first, second, given)]
            assert seeds[0] != seeds[1]
            assert seeds[2] == -3
            assert cluster.engine.submitted[2].params.temperature == 0
            assert first[0].accepted.request_id != second[0].accepted.request_id

    asyncio.run(scenario())


def test_each_of_several_outputs_finishes_once_and_only_the_last_has_the_usage(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            request = tokens(*range(5, 25), num_sequences=3, stopping=stopping(max_tokens=4))
            events = await cluster.events(request)

            ends = [event.finished for event in events if event.HasField("finished")]
            assert sorted(end.index for end in ends) == [0, 1, 2]
            assert [end.HasField("usage") for end in ends] == [False, False, True]
            assert events[-1].finished == ends[-1]
            assert [_joined(events, index)[0][0] for index in range(3)] == [124, 125, 126]
            usage = ends[-1].usage
            assert (usage.completion_tokens, usage.cached_tokens, usage.rounds) == (12, 16, 12)

    asyncio.run(scenario())


@pytest.mark.parametrize("per_round", [1, 2, 5, 50])
@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_ends_the_output_and_frees_the_engine(model: Path, per_round: int, included: bool) -> None:
    async def scenario() -> None:
        tokenizer = Tokenizer.load(model)
        assert tokenizer is not None
        answer = tokenizer.encode("the quick brown fox jumps")[1:] + tokenizer.encode(" over the lazy dog" * 12)[1:]
        engine = FakeEngine(lambda request, index: answer, per_round=lambda given: per_round)
        async with running(model, engine) as cluster:
            stop = stopping(stop=["brown f", "zebra"], include_stop_str_in_output=included)
            events = await cluster.events(pb.GenerateRequest(prompt="go", stopping=stop))

            token_ids, text = _joined(events)
            assert text == ("the quick brown f" if included else "the quick ")
            assert events[-1].finished.stop_string == "brown f"
            assert events[-1].finished.usage.completion_tokens == len(token_ids)
            assert token_ids == answer[: len(token_ids)]
            assert "brown f" in tokenizer.decode(token_ids)
            assert "brown f" not in tokenizer.decode(token_ids[:-1])
            assert not [event for event in events[:-1] if "brow" in event.output.text and not included]
            for _ in range(200):
                if not engine.live:
                    break
                await asyncio.sleep(0.005)
            assert not engine.live

    asyncio.run(scenario())


def test_a_stop_string_of_one_output_leaves_the_others_running(model: Path) -> None:
    async def scenario() -> None:
        tokenizer = Tokenizer.load(model)
        assert tokenizer is not None
        dog, fox = tokenizer.encode("the lazy dog " * 8)[1:], tokenizer.encode("the brown fox " * 8)[1:]
        engine = FakeEngine(lambda request, index: fox if index == 0 else dog)
        async with running(model, engine) as cluster:
            request = pb.GenerateRequest(prompt="go", num_sequences=2, stopping=stopping(stop=["fox"], max_tokens=20))
            events = await cluster.events(request)

            ends = {event.finished.index: event.finished for event in events if event.HasField("finished")}
            assert ends[0].stop_string == "fox"
            assert ends[1].reason == pb.FINISH_REASON_LENGTH
            assert _joined(events, 0)[1] == "the brown "
            assert len(_joined(events, 1)[0]) == 20

    asyncio.run(scenario())


def test_logprobs_come_with_every_token_and_carry_its_text(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            request = tokens(5, response=pb.ResponseOptions(logprobs=2), stopping=stopping(max_tokens=3))
            events = await cluster.events(request)

            outputs = [event.output for event in events if event.HasField("output")]
            places = [place for output in outputs for place in output.logprobs]
            assert [place.entries[0].token_id for place in places] == _joined(events)[0]
            assert [len(place.entries) for place in places] == [3, 3, 3]
            assert [(e.logprob, e.rank) for e in places[0].entries] == [(-0.5, 1), (-1.0, 2), (-1.5, 3)]
            tokenizer = Tokenizer.load(model)
            assert tokenizer is not None
            assert places[0].entries[0].decoded_token == tokenizer.decode([105])

    asyncio.run(scenario())


def test_logprobs_of_a_long_prompt_come_first_in_messages_of_bounded_size(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=1200)) as cluster:
            prompt = [100 + n % 50 for n in range(1100)]
            request = tokens(*prompt, response=pb.ResponseOptions(prompt_logprobs=1), stopping=stopping(max_tokens=2))
            events = await cluster.events(request)

            outputs = [event.output for event in events if event.HasField("output")]
            sizes = [len(output.prompt_logprobs) for output in outputs]
            assert sum(sizes) == len(prompt) - 1
            assert max(sizes) <= 200
            assert all(sizes[: sizes.index(0)])
            assert not any(sizes[sizes.index(0) :])
            assert not any(output.token_ids for output in outputs[:3])
            entries = [place.entries for output in outputs for place in output.prompt_logprobs]
            assert [(len(place), place[0].token_id) for place in entries] == [(2, token) for token in prompt[1:]]
            assert _joined(events)[0] == [149, 150]

    asyncio.run(scenario())


def test_reasoning_comes_apart_from_the_answer_if_asked_for(model: Path) -> None:
    async def scenario() -> None:
        tokenizer = Tokenizer.load(model)
        assert tokenizer is not None
        end = tokenizer.reasoning_ids[1]
        said = [*tokenizer.encode("the quick")[1:], end, *tokenizer.encode("fox")[1:], EOS]
        async with running(model, FakeEngine(lambda request, index: said, per_round=lambda given: 3)) as cluster:
            for asked, wanted in ((True, ("the quick", "fox")), (False, ("", "the quickfox"))):
                events = await cluster.events(tokens(5, response=pb.ResponseOptions(reasoning=asked)))

                outputs = [event.output for event in events if event.HasField("output")]
                texts = ("".join(output.reasoning for output in outputs), "".join(output.text for output in outputs))
                assert texts == wanted
                assert _joined(events)[0] == said
            assert [one.params.reasoning_end_id for one in cluster.engine.submitted] == [end, None]

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", [False, True])
def test_drafted_and_accepted_counts_come_with_the_output_if_asked_for(model: Path, asked: bool) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(per_round=lambda given: 4)) as cluster:
            response = pb.ResponseOptions(speculation_detail=asked)
            events = await cluster.events(tokens(5, response=response, stopping=stopping(max_tokens=8)))

            outputs = [event.output for event in events if event.HasField("output")]
            counts = (sum(output.drafted for output in outputs), sum(output.accepted for output in outputs))
            assert counts == ((8, 6) if asked else (0, 0))
            pieces = [piece for output in outputs for piece in output.pieces]
            assert {piece.drafted for piece in pieces} == ({True, False} if asked else set())
            if asked:
                assert "".join(piece.text for piece in pieces) == _joined(events)[1]

    asyncio.run(scenario())


def test_a_checkpoint_without_a_tokenizer_answers_token_ids_with_token_ids(bare_model: Path) -> None:
    async def scenario() -> None:
        async with running(bare_model) as cluster:
            events = await cluster.events(tokens(5, stopping=stopping(max_tokens=2)))

            assert _joined(events) == ([105, 106], "")

    asyncio.run(scenario())


def test_a_stop_id_is_named_and_stays_among_the_tokens(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            events = await cluster.events(tokens(5, stopping=stopping(stop_token_ids=[108])))

            assert _joined(events)[0] == [105, 106, 107, 108]
            assert events[-1].finished.stop_token_id == 108
            assert events[-1].finished.reason == pb.FINISH_REASON_STOP

    asyncio.run(scenario())
