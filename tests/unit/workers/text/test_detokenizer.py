from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizer import VOCABULARY_SIZE

from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.tokenizer import Tokenizer

_settings = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _pieces(tokenizer: Tokenizer, token_ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return [detokenizer.add(token_id) for token_id in token_ids] + [detokenizer.flush()]


@_settings
@given(text=st.text())
def test_a_text_comes_back_whole_and_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)[1:]

    pieces = _pieces(tokenizer, token_ids, skip_special_tokens=False)

    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=False) == text
    assert "�" not in "".join(pieces) or "�" in text


@_settings
@given(token_ids=st.lists(st.integers(0, VOCABULARY_SIZE + 20), max_size=40), skip_special_tokens=st.booleans())
def test_any_tokens_give_the_text_that_decoding_them_at_once_gives(
    tokenizer: Tokenizer, token_ids: list[int], skip_special_tokens: bool
) -> None:
    pieces = _pieces(tokenizer, token_ids, skip_special_tokens)

    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_a_character_of_several_tokens_comes_with_its_last_one(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("é𝄞")[1:]
    assert len(token_ids) > 2

    pieces = _pieces(tokenizer, token_ids)

    assert [piece for piece in pieces if piece] == ["é", "𝄞"]


def test_an_unfinished_character_at_the_end_becomes_one_replacement_character(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("𝄞")[1:-1]

    assert "".join(_pieces(tokenizer, token_ids)) == "�"
