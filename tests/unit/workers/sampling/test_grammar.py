"""A grammar is followed forward over tokens and back over drafts, and allows what an independent check calls valid."""

import itertools
import json
import random
import re
import threading
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits

from outrider.workers.config import resolve_model
from outrider.workers.sampling.grammar import MOST_PLACE_S, Constraint, Grammars
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.token_rules import Mask, allowed_of
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import Round, SequenceStart, Verdict, ints

VOCAB, EOS, THINK_END = 4096, 1, 6
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PARAMS: dict[str, StructuredOutputsParams] = {
    "json": StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
    "regex": StructuredOutputsParams(regex=r"[a-c]{1,4}-\d{2}(x|yy)?"),
    "choice": StructuredOutputsParams(choice=["yes", "no", "yes, but", "naïve 🎉"]),
    "grammar": StructuredOutputsParams(grammar='start: item ("," item)~1..2\nitem: /[0-9]+/ | "(" item ")"'),
}
Tokens = list[int]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(resolve_model("scout"), VOCAB, (EOS,))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.load(resolve_model("scout"))
    assert tokenizer is not None
    return tokenizer


def mask_after(constraint: Constraint, output: Tokens) -> list[int] | None:
    """The tokens allowed after `output`; None: all."""
    mask: Mask = np.zeros(constraint.words, dtype=np.uint32)
    if not constraint.fill(ints(output), mask):
        return None
    return np.flatnonzero(allowed_of(mask, VOCAB)).tolist()


def valid(kind: str, text: str) -> bool:
    """By other means than the library's."""
    if kind == "json":
        value: Any = json.loads(text)
        return (
            list(value) == ["name", "age"] and len(value["name"]) <= 6 and type(value["age"]) is int
            and 0 <= value["age"] <= 99
        )  # fmt: skip
    if kind == "choice":
        return text in (PARAMS["choice"].choice or ())
    if kind == "regex":
        return re.fullmatch(PARAMS["regex"].regex or "", text) is not None
    items = text.split(",")
    return len(items) in (2, 3) and all(re.fullmatch(r"(\()*\d+(\))*", item) for item in items)


def walk(constraint: Constraint, draw: random.Random, most: int = 60) -> Tokens:
    """Legal tokens at random up to the end; shorter ones rather, so that there is an end."""
    output: Tokens = []
    while EOS not in output and len(output) < most:
        allowed = mask_after(constraint, output)
        assert allowed, "a legal output must be able to go on"
        output.append(EOS if EOS in allowed and draw.random() < 0.5 else draw.choice(allowed))
    return output


@pytest.mark.parametrize("kind", PARAMS)
def test_whatever_is_legal_to_its_end_is_valid(grammars: Grammars, tokenizer: Tokenizer, kind: str) -> None:
    draw, ended = random.Random(1), 0
    for _ in range(15):
        output = walk(grammars.follow(PARAMS[kind], None), draw)
        if output[-1] == EOS:
            ended += 1
            assert valid(kind, tokenizer.decode(output[:-1])), tokenizer.decode(output)
    assert ended > 5


@pytest.mark.parametrize("kind", PARAMS)
def test_masks_are_the_same_whatever_drafts_came_between(grammars: Grammars, kind: str) -> None:
    """Against a grammar that is followed afresh to each place."""
    draw = random.Random(2)
    output = walk(grammars.follow(PARAMS[kind], None), draw, most=24)
    wandering = grammars.follow(PARAMS[kind], None)
    for _ in range(60):
        place = draw.randrange(len(output))
        drafts = [draw.choice([*output, draw.randrange(VOCAB)]) for _ in range(draw.randrange(3))]
        mask_after(wandering, [*output[:place], *drafts])

        assert mask_after(wandering, output[:place]) == mask_after(grammars.follow(PARAMS[kind], None), output[:place])


def test_behind_an_illegal_draft_nothing_is_said_and_before_it_all_is_as_it_was(grammars: Grammars) -> None:
    constraint = grammars.follow(StructuredOutputsParams(regex="[ab]+"), None)
    before = mask_after(constraint, [])
    assert before is not None

    assert mask_after(constraint, [EOS + 3]) is None
    assert mask_after(constraint, [before[0], 3, before[0]]) is None
    assert mask_after(constraint, []) == before


def test_behind_its_end_an_output_can_only_end_again(grammars: Grammars) -> None:
    constraint = grammars.follow(PARAMS["choice"], None)
    output = walk(constraint, random.Random(3))

    assert output[-1] == EOS
    assert mask_after(constraint, output) == [EOS]
    assert mask_after(constraint, [*output, EOS]) == [EOS]
    assert mask_after(constraint, output[:1]) != [EOS]


TIGHT = LLParserLimits(step_max_items=1)


def until_it_fails(constraint: Constraint) -> Tokens:
    output: Tokens = []
    while (allowed := mask_after(constraint, output)) is not None:
        output.append(next(token for token in allowed if token != EOS))
        assert len(output) < 9, "it never failed: the test is too easy"
    return output


def test_where_following_costs_too_much_the_place_is_told_and_others_are_as_they_were(grammars: Grammars) -> None:
    constraint = Grammars(resolve_model("scout"), VOCAB, (EOS,), TIGHT).follow(PARAMS["regex"], None)

    output = until_it_fails(constraint)

    assert constraint.failed_at == len(output) > 0
    assert mask_after(constraint, output[:1]) == mask_after(grammars.follow(PARAMS["regex"], None), output[:1])


HEAVY = StructuredOutputsParams(grammar="start: T\nT: /(.*a.{12}b.*)/ & /(.*c.{11}d.*)/")  # many lexer states


def walk_until_it_fails(constraint: Constraint, draw: random.Random) -> Tokens:
    output: Tokens = []
    while (allowed := mask_after(constraint, output)) is not None:
        output.append(draw.choice([token for token in allowed if token != EOS]))
        assert len(output) < 2000, "it never failed: the test is too easy"
    return output


def test_an_output_that_wears_out_what_others_share_ends_none_of_them() -> None:
    """Lexer states are built once for all outputs under a grammar, and there is a most of them."""
    grammars = Grammars(resolve_model("scout"), VOCAB, (EOS,), LLParserLimits(max_lexer_states=2000))
    other, worn = grammars.follow(HEAVY, None), grammars.follow(HEAVY, None)
    output = walk_until_it_fails(worn, random.Random(5))
    fresh = Grammars(resolve_model("scout"), VOCAB, (EOS,)).follow(HEAVY, None)

    few = output[: len(output) // 4]
    for constraint in (other, grammars.follow(HEAVY, None)):
        assert mask_after(constraint, few) == mask_after(fresh, few)
        assert constraint.failed_at is None


@pytest.mark.parametrize("place", [0, 3])
def test_a_place_that_takes_too_long_fails_its_output_there_and_not_before(grammars: Grammars, place: int) -> None:
    output = walk(grammars.follow(PARAMS["regex"], None), random.Random(4))
    steps = itertools.count()
    step_s = [0.0]
    constraint = Constraint(
        grammars.prepare(PARAMS["regex"]).result(), grammars.words, (EOS,), None, lambda: None,
        clock=lambda: next(steps) * step_s[0],
    )  # fmt: skip
    for before in range(place):
        assert mask_after(constraint, output[:before]) is not None
    step_s[0] = 2 * MOST_PLACE_S

    assert mask_after(constraint, output[:place]) is None

    assert constraint.failed_at == place


@pytest.mark.parametrize(("accepted", "fails"), [(0, False), (1, True)])
def test_a_sequence_fails_if_a_token_it_keeps_was_drawn_where_its_grammar_could_not_be_followed(
    accepted: int, fails: bool
) -> None:
    """Not if the place was behind a draft that fell."""
    grammars = Grammars(resolve_model("scout"), VOCAB, (EOS,), TIGHT)
    *output, last = until_it_fails(grammars.follow(PARAMS["regex"], None))
    params = SamplingParams(structured_outputs=PARAMS["regex"], temperature=0)
    starts = SequenceStarts((EOS,), grammars)
    starts.begin(
        [
            SequenceStart(
                sequence_id=4, output_index=0, seed=1, prompt_tokens=3, params=params, output_token_ids=tuple(output)
            )
        ]
    )
    start = 3 + len(output) - 1
    round = Round(
        sequence_ids=ints([4]),
        query_offsets=ints([0, 2]),
        token_ids=ints([output[-1], last]),
        starts=ints([start]),
        sample_counts=ints([2]),
    )
    starts.write_drafts(round)

    starts.draws(ints([4, 4]), ints([start + 1, start + 2]))

    gained = [last, 7] if accepted else [7]
    verdict = Verdict(token_offsets=ints([0, len(gained)]), token_ids=ints(gained))
    assert starts.failed(round, verdict) == ([0] if fails else [])


def test_after_reasoning_the_grammar_begins_behind_the_first_end_of_it(grammars: Grammars) -> None:
    late, plain = grammars.follow(PARAMS["regex"], THINK_END), grammars.follow(PARAMS["regex"], None)

    assert mask_after(late, []) is None
    assert mask_after(late, [500, 600, 5]) is None
    assert mask_after(late, [500, THINK_END]) == mask_after(plain, [])
    assert mask_after(late, [500, 600]) is None  # the draft of </think> was rejected
    first = (mask_after(plain, []) or [])[0]
    assert mask_after(late, [500, THINK_END, first]) == mask_after(plain, [first])
    assert THINK_END not in (mask_after(late, [THINK_END]) or [THINK_END])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "exactly one"),
        ({"json": "{}", "regex": "a"}, "exactly one"),
        ({"json_object": False}, "exactly one"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": "ab"}, "choice"),
        ({"choice": ["a"] * 1025}, "choice"),
        ({"regex": ""}, "regex"),
        ({"regex": 5}, "regex"),
        ({"json": 5}, "json"),
        ({"grammar": "a" * 65_537}, "grammar must be at most 65536 bytes"),
        ({"json": {"enum": ["a" * 65_537]}}, "json must be at most"),
        ({"structural_tag": "x"}, "structural_tag"),
        ([], "mapping"),
    ],
)
def test_what_is_no_constraint_is_refused_by_name(given: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^structured_outputs .*{named}"):
        StructuredOutputsParams.of(given)


def test_a_mapping_is_as_good_and_survives_the_wire() -> None:
    params = SamplingParams(structured_outputs={"json": SCHEMA, "disable_any_whitespace": True})  # type: ignore[arg-type]

    assert params.structured_outputs == PARAMS["json"]
    assert SamplingParams.from_json(params.to_json()) == params


def test_a_grammar_is_compiled_once_and_elsewhere_and_followed_from_then_on(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = StructuredOutputsParams(regex="[xyz]{2,5}")
    threads: list[str] = []
    slow = Grammars(resolve_model("scout"), VOCAB, (EOS,))
    wanted = mask_after(grammars.follow(params, None), [])

    def compile_here(*args: Any, **settings: Any) -> LLMatcher:
        threads.append(threading.current_thread().name)
        return LLMatcher(*args, **settings)

    monkeypatch.setattr("outrider.workers.sampling.grammar.LLMatcher", compile_here)

    compiled = slow.prepare(params)

    assert slow.prepare(StructuredOutputsParams(regex="[xyz]{2,5}")) is compiled
    assert mask_after(slow.follow(params, None), []) == wanted
    assert [name.rpartition("_")[0] for name in threads] == ["grammar"]


def test_compiled_grammars_are_kept_and_the_one_longest_unused_goes_first() -> None:
    grammars = Grammars(resolve_model("scout"), VOCAB, (EOS,))
    first = grammars.prepare(PARAMS["regex"])
    second = grammars.prepare(PARAMS["choice"])
    for n in range(62):
        grammars.prepare(StructuredOutputsParams(regex=f"a{n}"))
    assert grammars.prepare(PARAMS["regex"]) is first

    grammars.prepare(StructuredOutputsParams(regex="one more"))

    assert grammars.prepare(PARAMS["regex"]) is first
    assert grammars.prepare(PARAMS["choice"]) is not second
