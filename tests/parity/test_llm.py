"""The offline API, as its user sees it, on scout and on checkpoints that lack something."""

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.types.errors import CheckpointError, OutriderError

PROMPT = "def parse(text):\n    "
CACHE = 128 << 20


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("scout", kv_cache_memory_bytes=CACHE, max_num_batched_tokens=24) as llm:
        yield llm


def _ids(llm: LLM, params: SamplingParams, prompt: str = PROMPT) -> list[int]:
    return llm.generate(prompt, params)[0].outputs[0].token_ids


def test_outputs_keep_the_order_and_the_ids_of_the_prompts(llm: LLM) -> None:
    prompts = [PROMPT, [5, 6, 7], "The"]

    outputs = llm.generate(prompts, SamplingParams(max_tokens=4, seed=1))

    assert llm.tokenizer is not None
    assert [out.prompt for out in outputs] == [PROMPT, None, "The"]
    assert [out.prompt_token_ids for out in outputs] == [
        llm.tokenizer.encode(PROMPT),
        [5, 6, 7],
        llm.tokenizer.encode("The"),
    ]
    assert all(len(out.outputs[0].token_ids) == 4 for out in outputs)


@pytest.mark.parametrize("speculation", ["off", 3])
def test_the_first_of_several_outputs_is_the_only_one_of_a_single(llm: LLM, speculation: str | int) -> None:
    one, three = (SamplingParams(n=n, seed=3, max_tokens=20, speculation=speculation) for n in (1, 3))

    outputs = llm.generate(PROMPT, three)[0].outputs

    assert outputs[0].token_ids == _ids(llm, one)
    assert [out.index for out in outputs] == [0, 1, 2]
    assert len({tuple(out.token_ids) for out in outputs}) == 3


def test_without_a_seed_the_same_run_gives_the_same_text_and_two_requests_do_not() -> None:
    runs = []
    for _ in range(2):
        with LLM("scout", kv_cache_memory_bytes=CACHE, seed=11) as llm:
            outputs = [out.outputs[0] for out in llm.generate([PROMPT, PROMPT], SamplingParams(max_tokens=12))]
            runs.append([(out.token_ids, out.seed) for out in outputs])

    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_text_at_the_same_token_with_and_without_drafts(llm: LLM, include: bool) -> None:
    plain = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=40, speculation="off"))[0].outputs[0]
    stop = plain.text[9:13]
    results = []
    for speculation in ("off", 4):
        params = SamplingParams(
            temperature=0, max_tokens=40, speculation=speculation, stop=[stop], include_stop_str_in_output=include
        )
        out = llm.generate(PROMPT, params)[0].outputs[0]
        results.append((out.token_ids, out.text, out.finish_reason, out.stop_reason))

    assert results[0] == results[1]
    ids, text, finish_reason, stop_reason = results[0]
    assert text == plain.text[: plain.text.index(stop) + (len(stop) if include else 0)]
    assert ids == plain.token_ids[: len(ids)]
    assert (finish_reason, stop_reason) == ("stop", stop)


def test_a_stop_id_inside_accepted_drafts_ends_the_output_there(llm: LLM) -> None:
    plain = _ids(llm, SamplingParams(temperature=0, max_tokens=40, speculation="off"))
    stop = plain[7]

    params = SamplingParams(temperature=0, max_tokens=40, speculation=6, stop_token_ids=[stop])
    out = llm.generate(PROMPT, params)[0].outputs[0]

    assert out.token_ids == plain[: plain.index(stop) + 1]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)


def test_min_tokens_puts_a_stop_off(llm: LLM) -> None:
    first = _ids(llm, SamplingParams(temperature=0, max_tokens=1))[0]
    stopped = SamplingParams(temperature=0, max_tokens=9, stop_token_ids=[first])

    assert _ids(llm, stopped) == [first]
    later = _ids(llm, SamplingParams(temperature=0, max_tokens=9, stop_token_ids=[first], min_tokens=5))
    assert len(later) >= 5
    assert first not in later[:5]


def test_what_would_run_past_the_models_length_ends_there_with_length() -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, max_model_len=32) as llm:
        outputs = [
            llm.generate([list(range(10, 30))], SamplingParams(max_tokens=None, ignore_eos=True, speculation=s))[0]
            for s in ("off", 5)
        ]
        with pytest.raises(ValueError, match="prompt has 32 tokens, and must be shorter than the model's length, 32"):
            llm.generate([list(range(10, 42))])

    assert [(len(out.outputs[0].token_ids), out.outputs[0].finish_reason) for out in outputs] == [(12, "length")] * 2


def test_logprobs_are_of_the_raw_logits_and_the_same_with_drafts(llm: LLM) -> None:
    both = []
    for speculation in ("off", 3):
        params = SamplingParams(temperature=0.7, seed=2, max_tokens=10, logprobs=3, speculation=speculation)
        out = llm.generate(PROMPT, params)[0].outputs[0]
        assert out.logprobs is not None
        assert len(out.logprobs) == 10
        assert all(token in at for token, at in zip(out.token_ids, out.logprobs, strict=True))
        assert all(sorted(c.rank for c in at.values())[:3] == [1, 2, 3] for at in out.logprobs)
        both.append(out.logprobs)

    assert both[0] == both[1]


def test_a_streams_deltas_add_up_to_the_whole(llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=30)
    whole = llm.generate(PROMPT, params)[0].outputs[0]

    deltas = list(llm.stream(PROMPT, params))

    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids


def test_closing_a_stream_cancels_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator

    deadline = time.monotonic() + 10
    while llm.status()[0].counters.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_chat_goes_through_the_models_template(llm: LLM) -> None:
    out = llm.chat([{"role": "user", "content": "What does print do?"}], SamplingParams(max_tokens=4))[0]

    assert llm.tokenizer is not None
    prompt = llm.tokenizer.decode(out.prompt_token_ids, skip_special_tokens=False)
    assert "<｜User｜>What does print do?<｜Assistant｜>" in prompt


def test_one_bad_prompt_refuses_the_whole_call_before_anything_runs(llm: LLM) -> None:
    rounds = llm.status()[0].counters.rounds

    with pytest.raises(ValueError, match="prompt must not be empty"):
        llm.generate([PROMPT, ""])
    with pytest.raises(ValueError, match=r"prompt\[1\] must be an integer in \[0, 4095\], got 4096"):
        llm.generate([[1, 4096]])
    with pytest.raises(ValueError, match=r"prompt\[0\] must be an integer in \[0, 4095\], got True"):
        llm.generate([[True]])
    for prompts in (5, [5]):
        with pytest.raises(ValueError, match=r"prompts? must be a text.* got 5"):
            llm.generate(prompts)  # type: ignore[arg-type]  # what users try
    with pytest.raises(ValueError, match=r"sampling_params must be SamplingParams, got {'n': 2}"):
        llm.generate(PROMPT, {"n": 2})  # type: ignore[arg-type]  # what users try
    with pytest.raises(ValueError, match="got 2 for 1 prompts"):
        llm.generate([PROMPT], [SamplingParams(), SamplingParams()])

    assert llm.status()[0].counters.rounds == rounds


def test_an_engine_without_speculation_refuses_requests_for_drafts() -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, speculation="off") as llm:
        with pytest.raises(ValueError, match="speculation"):
            llm.generate(PROMPT, SamplingParams(speculation=2))
        assert len(_ids(llm, SamplingParams(max_tokens=3))) == 3


def test_an_output_says_by_depth_how_many_rounds_it_took_and_what_drafts_saved() -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE) as llm:
        some = [
            llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, speculation=s))[0]
            for s in ("off", 3, 3)
        ]

    off, _, drafted = (out.outputs[0].speculation for out in some)
    assert off is not None
    assert drafted is not None
    assert off.rounds_per_depth == [60]
    assert sum(drafted.rounds_per_depth) == drafted.rounds < 60
    assert sum(depth * rounds for depth, rounds in enumerate(drafted.rounds_per_depth)) == drafted.drafted
    assert drafted.estimated_time_saved_s != 0.0  # how much depends on the machine


def test_a_fixed_depth_is_a_ceiling_for_requests() -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, speculation=2) as llm:
        deep = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=30, speculation=8))[0].outputs[0]

    assert deep.speculation is not None
    assert len(deep.speculation.drafted_per_position) == 2


def test_a_checkpoint_without_mtp_weights_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, random_config(1), layout=Layout(mtp=False))

    with caplog.at_level(logging.WARNING), LLM(str(tmp_path), kv_cache_memory_bytes=CACHE) as llm:
        assert len(llm.generate([[3, 4]], SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids) == 5

    assert "no MTP weights" in caplog.text
    with pytest.raises(CheckpointError, match=r"no MTP weights.*speculation=2"):
        LLM(str(tmp_path), speculation=2)


def test_a_checkpoint_without_a_tokenizer_takes_token_ids_and_gives_no_text(tmp_path: Path) -> None:
    scout = resolve_model("scout")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(scout / name, tmp_path)

    with LLM(str(tmp_path), kv_cache_memory_bytes=CACHE) as llm:
        out = llm.generate([[5, 6]], SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0]
        assert (len(out.token_ids), out.text) == (3, "")
        with pytest.raises(ValueError, match="token ids"):
            llm.generate("text")
        with pytest.raises(ValueError, match="stop needs a tokenizer"):
            llm.generate([[5]], SamplingParams(stop="x"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(OutriderError, match='device="cuda"'):
        LLM("scout", device="cuda")


def test_a_model_longer_than_it_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len must be at most the model's 4096, got 5000"):
        LLM("scout", max_model_len=5000)
