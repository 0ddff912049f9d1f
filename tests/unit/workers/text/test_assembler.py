from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizer import VOCABULARY_SIZE

from outrider.workers.text.assembler import OutputAssembler, OutputDelta, RequestAssembler, TextPiece, joined
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.request import FinishReason, OutputSoFar, SequenceChunk, TokenLogprobs
from outrider.workers.types.requests.sampling_params import SamplingParams

_settings = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EOS = 1


def _chunks(
    token_ids: list[int], sizes: list[int], finish: FinishReason, stop_token_id: int | None = None
) -> list[SequenceChunk]:
    """The tokens in rounds of these sizes, over and over; the last round carries the end."""
    rounds: list[list[int]] = []
    while sum(map(len, rounds)) < len(token_ids):
        size = sizes[len(rounds) % len(sizes)]
        done = sum(map(len, rounds))
        rounds.append(token_ids[done : done + size])
    chunks = [SequenceChunk(request_id="r", token_ids=tuple(one)) for one in rounds or [[]]]
    return [*chunks[:-1], replace(chunks[-1], finish_reason=finish, stop_token_id=stop_token_id)]


def _assemble(tokenizer: Tokenizer | None, params: SamplingParams, chunks: list[SequenceChunk]) -> list[OutputDelta]:
    assembler = OutputAssembler(tokenizer, params)
    deltas = [assembler.add(chunk) for chunk in chunks]
    assert assembler.finished
    return deltas


def _result(deltas: list[OutputDelta]) -> tuple[list[int], str, FinishReason | None, int | str | None]:
    end = next(delta for delta in deltas if delta.finish_reason is not None)
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    return token_ids, "".join(delta.text for delta in deltas), end.finish_reason, end.stop_reason


@_settings
@given(
    token_ids=st.lists(st.integers(20, VOCABULARY_SIZE - 1), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    stops=st.lists(st.sampled_from(["e", " the", "fox", "o w", "你", "\n", "��"]), max_size=3),
    min_tokens=st.integers(0, 10),
    include=st.booleans(),
)
def test_the_result_does_not_depend_on_how_tokens_came_in_rounds(
    tokenizer: Tokenizer, token_ids: list[int], sizes: list[int], stops: list[str], min_tokens: int, include: bool
) -> None:
    params = SamplingParams(stop=stops, min_tokens=min_tokens, max_tokens=None, include_stop_str_in_output=include)

    alone = _result(_assemble(tokenizer, params, _chunks(token_ids, [1], FinishReason.LENGTH)))
    grouped = _result(_assemble(tokenizer, params, _chunks(token_ids, sizes, FinishReason.LENGTH)))

    assert grouped == alone
    kept, text, finish, stop = grouped
    if finish is FinishReason.STOP:
        assert isinstance(stop, str)
        assert len(kept) > min_tokens
        assert text.endswith(stop) if include else tokenizer.decode(kept).startswith(text + stop)
    else:
        assert (kept, text) == (token_ids, tokenizer.decode(token_ids))


@_settings
@given(
    token_ids=st.lists(st.integers(20, VOCABULARY_SIZE - 1), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    stops=st.lists(st.sampled_from(["e", " the", "fox", "你"]), max_size=2),
)
def test_pieces_are_the_text_again(
    tokenizer: Tokenizer, token_ids: list[int], sizes: list[int], stops: list[str]
) -> None:
    chunks = [replace(one, accepted=len(one.token_ids) - 1) for one in _chunks(token_ids, sizes, FinishReason.LENGTH)]

    deltas = _assemble(tokenizer, SamplingParams(stop=stops, max_tokens=None), chunks)

    for delta in deltas:
        assert "".join(piece.text for piece in delta.pieces) == delta.text


def test_pieces_say_which_text_accepted_drafts_said(tokenizer: Tokenizer) -> None:
    first, second, third = (tuple(tokenizer.encode(word)[1:]) for word in ("quick", " brown", " fox"))
    chunk = SequenceChunk(request_id="r", token_ids=first + second + third, drafted=9, accepted=len(first + second))

    delta = OutputAssembler(tokenizer, SamplingParams()).add(chunk)

    assert joined(delta.pieces) == (TextPiece("quick brown", drafted=True), TextPiece(" fox"))


def test_a_stop_string_inside_a_round_discards_its_later_tokens_and_asks_to_cancel(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("the quick brown fox jumps over")[1:]
    upto = next(n for n in range(len(token_ids)) if "fox" in tokenizer.decode(token_ids[:n]))
    chunk = SequenceChunk(request_id="r", token_ids=tuple(token_ids))

    delta = OutputAssembler(tokenizer, SamplingParams(stop="fox")).add(chunk)

    assert delta.token_ids == tuple(token_ids[:upto])
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("the quick brown ", FinishReason.STOP, "fox")
    assert delta.must_cancel


def test_the_engine_need_not_be_told_of_a_stop_string_in_its_last_round(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("fox")[1:]
    chunk = SequenceChunk(request_id="r", token_ids=tuple(token_ids), finish_reason=FinishReason.LENGTH)

    delta = OutputAssembler(tokenizer, SamplingParams(stop="fox")).add(chunk)

    assert (delta.finish_reason, delta.stop_reason, delta.must_cancel) == (FinishReason.STOP, "fox", False)


def test_what_comes_after_a_stop_string_is_nothing(tokenizer: Tokenizer) -> None:
    assembler = RequestAssembler(tokenizer, SamplingParams(stop="fox"), prompt_tokens=3)
    first = SequenceChunk(request_id="r", token_ids=tuple(tokenizer.encode("fox")[1:]), drafted=2, accepted=1)
    assembler.add(first)
    usage = replace(assembler.usage)

    late = assembler.add(SequenceChunk(request_id="r", token_ids=(30, 31), finish_reason=FinishReason.CANCELLED))

    assert late == OutputDelta(index=0)
    assert assembler.usage == usage


def test_end_of_sequence_is_a_token_and_never_text_even_where_special_tokens_are_shown(tokenizer: Tokenizer) -> None:
    token_ids = [*tokenizer.encode("fox")[1:], EOS]
    chunks = _chunks(token_ids, [2], FinishReason.STOP, stop_token_id=EOS)

    for include in (False, True):
        params = SamplingParams(skip_special_tokens=False, include_stop_str_in_output=include)
        assert _result(_assemble(tokenizer, params, chunks)) == (token_ids, "fox", FinishReason.STOP, None)


def test_a_stop_id_is_text_only_if_what_stopped_is_to_be_included(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("the fox")[1:]
    last = token_ids[-1]
    chunks = _chunks(token_ids, [3], FinishReason.STOP, stop_token_id=last)

    without = _result(_assemble(tokenizer, SamplingParams(stop_token_ids=[last]), chunks))
    included = SamplingParams(stop_token_ids=[last], include_stop_str_in_output=True)
    with_it = _result(_assemble(tokenizer, included, chunks))

    assert without == (token_ids, tokenizer.decode(token_ids[:-1]), FinishReason.STOP, last)
    assert with_it == (token_ids, "the fox", FinishReason.STOP, last)


def test_text_held_back_for_a_stop_string_comes_at_the_end_if_it_was_none(tokenizer: Tokenizer) -> None:
    chunks = _chunks(tokenizer.encode("the fo")[1:], [1], FinishReason.LENGTH)

    assert _result(_assemble(tokenizer, SamplingParams(stop="fox"), chunks))[1] == "the fo"


def test_without_a_tokenizer_tokens_pass_and_text_stays_empty() -> None:
    chunks = _chunks([5, 6, 7], [2], FinishReason.CANCELLED)

    assert _result(_assemble(None, SamplingParams(), chunks)) == ([5, 6, 7], "", FinishReason.CANCELLED, None)


def test_usage_counts_rounds_drafts_and_acceptance_by_position() -> None:
    assembler = RequestAssembler(None, SamplingParams(n=2), prompt_tokens=20)
    for index, drafted, accepted in ((0, 3, 3), (0, 3, 1), (1, 0, 0)):
        tokens = tuple(range(accepted + 1))
        assembler.add(
            SequenceChunk(
                request_id="r", index=index, token_ids=tokens, drafted=drafted, accepted=accepted, cached_tokens=16
            )
        )

    usage = assembler.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.rounds) == (20, 7, 3)
    assert (usage.drafted, usage.accepted) == (6, 4)
    assert usage.accepted_per_position == [2, 1, 1]
    assert usage.drafted_per_position == [2, 2, 2]


@_settings
@given(
    thought=st.lists(st.integers(20, VOCABULARY_SIZE - 1), max_size=12),
    answer=st.lists(st.integers(20, VOCABULARY_SIZE - 1), max_size=12),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    opened=st.booleans(),
    closed=st.booleans(),
)
def test_reasoning_is_given_apart_wherever_its_border_falls_in_a_round(
    tokenizer: Tokenizer, thought: list[int], answer: list[int], sizes: list[int], opened: bool, closed: bool
) -> None:
    begin, end = tokenizer.reasoning_ids
    assert begin is not None
    assert end is not None
    token_ids = [*[begin] * opened, *thought, *([end, *answer] if closed else [])]

    deltas = _assemble(tokenizer, SamplingParams(reasoning=True), _chunks(token_ids, sizes, FinishReason.LENGTH))

    assert "".join(delta.reasoning for delta in deltas) == tokenizer.decode(thought)
    assert "".join(delta.text for delta in deltas) == (tokenizer.decode(answer) if closed else "")
    assert _result(deltas)[0] == token_ids


def test_a_stop_string_holds_in_reasoning_and_in_the_answer_but_not_across_their_border(tokenizer: Tokenizer) -> None:
    _, end = tokenizer.reasoning_ids
    assert end is not None
    thought, answer = (tokenizer.encode(text)[1:] for text in ("the quick", "brown fox"))
    params = SamplingParams(reasoning=True, stop=["kb", "fo"])

    deltas = _assemble(tokenizer, params, _chunks([*thought, end, *answer], [2], FinishReason.LENGTH))

    assert "".join(delta.reasoning for delta in deltas) == "the quick"
    assert _result(deltas)[1:] == ("brown ", FinishReason.STOP, "fo")


def test_without_reasoning_asked_for_the_text_is_one(tokenizer: Tokenizer) -> None:
    _, end = tokenizer.reasoning_ids
    assert end is not None
    token_ids = [*tokenizer.encode("the quick")[1:], end, *tokenizer.encode("fox")[1:]]
    params = SamplingParams(skip_special_tokens=False)

    deltas = _assemble(tokenizer, params, _chunks(token_ids, [3], FinishReason.LENGTH))

    assert _result(deltas)[1] == "the quick</think>fox"
    assert not any(delta.reasoning for delta in deltas)


def test_a_request_is_finished_when_each_of_its_outputs_is_however_it_ended(tokenizer: Tokenizer) -> None:
    """Of three one had finished before, one ends by a stop string and is cancelled then, one by length."""
    assembler = RequestAssembler(tokenizer, SamplingParams(n=3, stop="a"), prompt_tokens=1)
    assembler.resume_after([OutputSoFar(index=1, token_ids=()), OutputSoFar(index=2, token_ids=())])
    letter, finished = tokenizer.encode("a"), []
    for chunk in (
        SequenceChunk(request_id="r", index=1, token_ids=tuple(letter)),
        SequenceChunk(request_id="r", index=1, finish_reason=FinishReason.CANCELLED),
        SequenceChunk(request_id="r", index=2, finish_reason=FinishReason.LENGTH),
    ):
        assembler.add(chunk)
        finished.append(assembler.finished)

    assert finished == [False, False, True]


def test_another_engine_says_the_prompts_log_probabilities_again_and_the_client_hears_them_once() -> None:
    places = tuple(TokenLogprobs(token_ids=(n,), logprobs=(-0.5,), ranks=(1,)) for n in range(9))
    assembler = RequestAssembler(None, SamplingParams(), 10)

    def told(some: slice) -> tuple[TokenLogprobs, ...]:
        return assembler.add(SequenceChunk(request_id="r", prompt_logprobs=places[some])).prompt_logprobs

    heard = told(slice(0, 4))
    for _ in range(2):
        assembler.restart()
        heard += told(slice(0, 3)) + told(slice(3, 6))
    heard += told(slice(6, 9))

    assert heard == places
    resumed = RequestAssembler(None, SamplingParams(), 10)
    resumed.resume_after([OutputSoFar(index=0, token_ids=(5,))])
    assert resumed.add(SequenceChunk(request_id="r", prompt_logprobs=places)).prompt_logprobs == ()
