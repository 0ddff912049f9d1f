"""Against transformers on the same files."""

import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_tokenizer import VOCABULARY_SIZE, write_tokenizer

from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.errors import CheckpointError

os.environ["HF_HUB_OFFLINE"] = "1"

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "What is <1 & 2>? 你好"},
    {"role": "assistant", "content": "<think>hm</think>three"},
    {"role": "user", "content": "Why?"},
]
TEMPLATES = [
    None,
    "{% for message in messages %}\n    {%- if loop.first %}{{ bos_token }}{% endif %}\n    {{ message | tojson }}\n"
    "{% if message.role == 'system' %}{% continue %}{% endif %}[{{ message['content'] | trim }}]\n{% endfor %}"
    "{% if add_generation_prompt %}>>{% endif %}{{ tools }}",
]


def _settings(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer is not None
    return tokenizer


def test_ids_and_text_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path)
    oracle, tokenizer = AutoTokenizer.from_pretrained(folder), _load(folder)

    for text in ("the quick brown fox", " café\n\n 12345 你好👩‍👩‍👧", "a<｜User｜>b<think>", ""):
        assert tokenizer.encode(text) == oracle(text)["input_ids"]
    token_ids = list(range(VOCABULARY_SIZE))
    for skip in (False, True):
        expected = oracle.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("in_file", [False, True])
def test_conversations_are_rendered_as_transformers_renders_them(
    tmp_path: Path, template: str | None, in_file: bool
) -> None:
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path)
    if template is not None and in_file:
        (folder / "chat_template.jinja").write_text(template)
    elif template is not None:
        _settings(folder, chat_template=template)
    oracle, tokenizer = AutoTokenizer.from_pretrained(folder), _load(folder)

    expected = oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)

    assert tokenizer.encode_chat(MESSAGES) == expected


def test_begin_of_sentence_is_added_once_where_only_the_settings_ask_for_it(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))

    tokenizer = _load(folder)

    assert tokenizer.encode("fox")[0] == 0
    assert tokenizer.encode("fox").count(0) == 1
    _settings(folder, add_bos_token=False)
    assert _load(folder).encode("fox") == tokenizer.encode("fox")[1:]


def test_special_tokens_may_be_written_as_objects(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    _settings(folder, bos_token={"content": "<｜begin▁of▁sentence｜>", "special": True})

    assert _load(folder).encode_chat(MESSAGES)[0] == 0


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    assert Tokenizer.load(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "{}", '{"decoder": {"type": "Metaspace"}}'])
def test_a_damaged_or_foreign_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("beside", [False, True])
def test_a_tokenizer_with_more_ids_than_the_model_is_refused_and_one_with_fewer_is_not(
    tmp_path: Path, beside: bool
) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    description = json.loads(path.read_text())
    if beside:  # a token beside the vocabulary counts as well
        added = {**description["added_tokens"][0], "id": len(description["model"]["vocab"]), "content": "<more>"}
        path.write_text(json.dumps({**description, "added_tokens": [*description["added_tokens"], added]}))
    size = len(description["model"]["vocab"]) + int(beside)

    for fits in (size, size + 64):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": fits}))
        assert Tokenizer.load(tmp_path) is not None

    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size - 1}))
    with pytest.raises(CheckpointError, match=rf"ids up to {size - 1}, but config\.json has vocab_size = {size - 1}:"):
        Tokenizer.load(tmp_path)


def test_a_damaged_template_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    _settings(folder, chat_template="{% if %}")

    with pytest.raises(CheckpointError, match="chat template"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{{ raise_exception('no system turns here') }}", MESSAGES),
        ("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}", MESSAGES),
        ("{{ messages[0].content }}", []),
        ("{{ messages[0].content }}", "hello"),
        ("{{ messages[0].content }}", [None]),
        ("{{ 'said: ' + messages[0].content }}", [{"role": "user", "content": 5}]),
    ],
)
def test_what_a_template_refuses_or_must_not_do_is_a_value_error_about_messages(
    tmp_path: Path, template: str, messages: Any
) -> None:
    folder = write_tokenizer(tmp_path)
    _settings(folder, chat_template=template)

    with pytest.raises(ValueError, match="messages"):
        _load(folder).encode_chat(messages)


def test_text_that_is_no_unicode_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt must be text that UTF-8 can hold"):
        _load(write_tokenizer(tmp_path)).encode("half a pair: \ud800")


def test_a_checkpoint_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    _settings(folder, chat_template=None)

    with pytest.raises(ValueError, match="messages need a chat template"):
        _load(folder).encode_chat(MESSAGES)


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    """A share of one run, so that it does not matter how busy the machine is: all of it, where the library keeps others
    from running."""
    tokenizer = Tokenizer.load(resolve_model("scout"))
    assert tokenizer is not None
    beats, ended = [time.monotonic()], threading.Event()

    def beat() -> None:
        while not ended.wait(0.001):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    began = time.monotonic()
    tokenizer.encode("the quick brown fox jumps over " * 60_000)
    took = time.monotonic() - began
    ended.set()
    thread.join()

    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < took / 2
