"""What of a bad word is ruled out."""

from pathlib import Path

import pytest
from small_tokenizer import load_tokenizer

from outrider.workers.text.bad_words import with_bad_words
from outrider.workers.types.requests.sampling_params import SamplingParams


def test_a_word_is_spelled_bare_and_after_a_space_where_that_is_another_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)

    spelled = with_bad_words(SamplingParams(bad_words=["fox", " 你好", "x", "the"]), tokenizer).bad_words_token_ids

    assert spelled is not None
    by_text = {tokenizer.decode(ids): ids for ids in spelled}
    assert {"fox", "你好", "x", "the"} <= set(by_text) <= {"fox", " fox", "你好", " 你好", "x", " x", "the", " the"}
    assert any(text.startswith(" ") for text in by_text)
    assert all(0 not in ids for ids in spelled), "begin-of-sentence is no part of a word"
    for text in ("fox", "你好", "x", "the"):
        spaced = tokenizer.encode(" " + text)[1:]
        same_kind = len(spaced) == len(by_text[text]) and spaced[0] != by_text[text][0]
        assert by_text.get(" " + text) == (spaced if same_kind else None)


def test_words_given_as_tokens_stay_beside_those_that_are_spelled(tmp_path: Path) -> None:
    params = SamplingParams(bad_words=["fox"], bad_words_token_ids=[[7, 8]])

    spelled = with_bad_words(params, load_tokenizer(tmp_path)).bad_words_token_ids

    assert spelled is not None
    assert spelled[0] == [7, 8]
    assert len(spelled) > 1


def test_a_word_of_too_many_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^bad_words_token_ids"):
        with_bad_words(SamplingParams(bad_words=["0123456789" * 30]), load_tokenizer(tmp_path))
