"""What a request may ask for, and how it is told that it may not."""

import math
import re
from typing import Any

import pytest

from outrider.workers.types.requests.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 2.0),
        ("n", None),
        ("max_tokens", 0),
        ("max_tokens", "9"),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", None),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", True),
        ("min_p", 1.5),
        ("seed", 2**63),
        ("logprobs", 21),
        ("stop", [""]),
        ("stop", [5]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1.5]),
        ("stop_token_ids", 7),
        ("top_k", 2**31),
        ("speculation", 0),
        ("speculation", 17),
        ("speculation", "deep"),
        ("speculation", True),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", "1"),
        ("logit_bias", [1]),
        ("logit_bias keys", {-1: 2.0}),
        ("logit_bias keys", {"1": 2.0}),
        ("logit_bias[1]", {1: 101.0}),
        ("logit_bias[1]", {1: math.nan}),
        ("logit_bias[1]", {1: None}),
        ("logit_bias keys", dict.fromkeys(range(1025), 1.0)),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", "12"),
        ("bad_words", "word"),
        ("bad_words", [" "]),
        ("bad_words", [5]),
        ("bad_words", ["x"] * 257),
        ("bad_words_token_ids[0]", [5]),
        ("bad_words_token_ids", 5),
        ("bad_words_token_ids[1]", [[1], []]),
        ("bad_words_token_ids[0]", [[1] * 65]),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
        ("structured_outputs", {"jsn": {}}),
        ("structured_outputs", "json"),
        ("reasoning", 1),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(name)} ") as caught:
        SamplingParams(**{name.split(" ")[0].split("[")[0]: value})  # type: ignore[arg-type]  # a table

    assert "\n" not in str(caught.value)


def test_more_tokens_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(ValueError, match="min_tokens must be in"):
        SamplingParams(min_tokens=9, max_tokens=8)


def test_several_outputs_of_a_greedy_request_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^n must be 1 at temperature 0"):
        SamplingParams(n=2, temperature=0)


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        temperature=0.3, stop=("a", "b"), stop_token_ids=(3,), max_tokens=None, seed=-5,
        logit_bias={7: -1.5}, allowed_token_ids=[7, 3], bad_words=["x"], bad_words_token_ids=[[1, 2], [3]],
        repetition_penalty=1.1,
    )  # fmt: skip

    back = SamplingParams.from_json(params.to_json())

    assert (back.logit_bias, back.bad_words_token_ids) == ({7: -1.5}, [[1, 2], [3]])
    assert back.to_json() == params.to_json()
    assert (back.max_tokens, back.seed, back.stop_strings) == (None, -5, ("a", "b"))


def test_a_stop_id_outside_the_vocabulary_is_refused_when_the_model_is_known() -> None:
    with pytest.raises(ValueError, match="stop_token_ids"):
        SamplingParams(stop_token_ids=[4096]).check_for_model(4096)


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", {4096: 1.0}), ("allowed_token_ids", [1, 4096]), ("bad_words_token_ids", [[1, 4096]])],
)
def test_a_token_outside_the_vocabulary_is_refused_when_the_model_is_known(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 4095\], got 4096"):
        SamplingParams(**{name: value}).check_for_model(4096)


def test_bad_words_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="bad_words_token_ids"):
        SamplingParams(bad_words=["x"]).check_for_model(4096, has_tokenizer=False)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="stop_token_ids"):
        SamplingParams(stop="x").check_for_model(4096, has_tokenizer=False)
