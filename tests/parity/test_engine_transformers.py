"""The whole engine against transformers: scheduler, paged cache, batching and drafts change no greedy token."""

from pathlib import Path

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import random_tokens
from transformers import DeepseekV3ForCausalLM

from outrider import LLM, SamplingParams

PROMPT_LENGTHS = (1, 23, 100)
TOKENS = 16
CACHE = 4 << 20


def transformers_greedy(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def assert_engines_agree(path: Path, seed: int, kernels: str) -> None:
    """All prompts at once, in chunks of fewer tokens than the longest has, with no drafts and with three."""
    config = random_config(seed)
    write_checkpoint(path, config, seed)
    prompts = [random_tokens(length, config["vocab_size"], seed + length) for length in PROMPT_LENGTHS]
    wanted = transformers_greedy(path, prompts)
    for speculation in ("off", 3):
        with LLM(
            str(path), kernels=kernels, speculation=speculation, kv_cache_memory_bytes=CACHE, block_size=8,
            max_num_batched_tokens=40,
        ) as llm:  # fmt: skip
            params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, speculation=speculation)
            outputs = [out.outputs[0] for out in llm.generate(prompts, params)]
        assert [out.token_ids for out in outputs] == wanted
        if speculation != "off":
            drafted = [out.speculation.drafted_per_position for out in outputs if out.speculation is not None]
            assert len(drafted) == len(prompts)
            assert all(len(depths) == speculation and depths[-1] > 0 for depths in drafted)


@pytest.mark.parametrize("seed", range(20))
def test_the_engine_gives_transformers_greedy_tokens_with_and_without_drafts(seed: int, tmp_path: Path) -> None:
    assert_engines_agree(tmp_path, seed, "compiled")


@pytest.mark.parametrize("seed", [0, 3, 7, 12, 18])
def test_the_engine_on_torchs_path_gives_transformers_greedy_tokens(seed: int, tmp_path: Path) -> None:
    assert_engines_agree(tmp_path, seed, "torch")


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["compiled", "torch"])
@pytest.mark.parametrize("seed", range(20, 60))
def test_forty_more_models_give_transformers_greedy_tokens(seed: int, kernels: str, tmp_path: Path) -> None:
    assert_engines_agree(tmp_path, seed, kernels)
