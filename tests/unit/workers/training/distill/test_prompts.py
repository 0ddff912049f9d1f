"""Prompt files, and what is decided by a prompt's tokens."""

import json
from pathlib import Path

import pytest
from rounds import random_tokens

from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.training.distill.harvest import plan_tasks
from outrider.workers.training.distill.prompts import Prompt, is_held_out, load_prompts
from outrider.workers.types.errors import OutriderError

TOKENIZER = Tokenizer.load(resolve_model("scout"))
assert TOKENIZER is not None


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_each_kind_of_file_gives_the_prompts_as_the_model_reads_them(tmp_path: Path) -> None:
    assert TOKENIZER is not None
    lines = [
        {"prompt": "one", "kind": "code"},
        {"messages": [{"role": "user", "content": "two"}]},
        {"token_ids": [5, 6]},
    ]
    files = [
        written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n"),
        written(tmp_path / "b.json", json.dumps({"code": ["one"], "prose": ["two"]})),
        written(tmp_path / "c.txt", "one\n\ntwo\none\n"),
    ]

    found = [load_prompts(file, TOKENIZER, 100) for file in files]

    one, two = (tuple(TOKENIZER.encode(text)) for text in ("one", "two"))
    chat = tuple(TOKENIZER.encode_chat([{"role": "user", "content": "two"}]))
    assert found[0] == [Prompt("code", one), Prompt("text", chat), Prompt("text", (5, 6))]
    assert found[1] == [Prompt("code", one), Prompt("prose", two)]
    assert found[2] == [Prompt("text", one), Prompt("text", two)]


def test_a_long_prompt_is_cut_and_two_that_are_then_the_same_are_one(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", '{"token_ids": [1, 2, 3]}\n{"token_ids": [1, 2, 4]}\n')

    assert load_prompts(file, None, 2) == [Prompt("text", (1, 2))]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "a.jsonl",
            '{"token_ids": [1]}\n{"text": "x"}',
            r"a\.jsonl, prompt 2: expected an object with prompt, messages",
        ),
        ("a.jsonl", "{", r"cannot read the prompts in .*a\.jsonl"),
        ("a.txt", "\n", r"a\.txt holds no prompt"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(OutriderError, match=why):
        load_prompts(written(tmp_path / name, text), TOKENIZER, 100)


def test_about_the_share_is_held_out_and_always_the_same() -> None:
    prompts = [random_tokens(10, 1000, seed) for seed in range(2000)]

    held_out = [is_held_out(prompt, 0.1) for prompt in prompts]

    assert 140 < sum(held_out) < 260
    assert held_out == [is_held_out(tuple(prompt), 0.1) for prompt in prompts]
    assert not any(is_held_out(prompt, 0.0) for prompt in prompts)


def test_no_two_texts_share_their_noise_and_the_same_run_has_the_same() -> None:
    prompts = [Prompt("text", (n, n + 1)) for n in range(50)]

    seeds = [task.seed for task in plan_tasks(prompts, (0.0, 0.8), seed=1)]

    assert len(set(seeds)) == 100
    assert seeds == [task.seed for task in plan_tasks(prompts, (0.0, 0.8), seed=1)]
    assert not set(seeds) & {task.seed for task in plan_tasks(prompts, (0.0, 0.8), seed=2)}
