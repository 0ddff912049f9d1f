"""Another MTP module put into a running engine: other drafts, the same text."""

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_config, rewrite, write_checkpoint
from safetensors.numpy import save_file

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.text.outputs import CompletionOutput, SpeculationSummary
from outrider.workers.types.errors import OutriderError

PROMPTS = ["def parse(text):\n    ", "The kernel", "import os\n", "class Tree:\n"]
CACHE = 128 << 20


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scout with a worse MTP module."""
    path = tmp_path_factory.mktemp("noisy") / "scout"
    shutil.copytree(resolve_model("scout"), path)
    layer = "model.layers.12."
    rewrite(
        path,
        lambda name, t: (
            t + 0.5 * t.float().std() * torch.randn(t.shape).to(t.dtype) if _is_drafters(name, layer) else t
        ),
    )
    return path


def _is_drafters(name: str, layer: str) -> bool:
    return name.startswith(layer) and "shared_head.head" not in name and "embed_tokens" not in name


def _run(llm: LLM, temperature: float) -> list[CompletionOutput]:
    params = SamplingParams(
        temperature=temperature, seed=3, max_tokens=48, ignore_eos=True, speculation=4, drafter="mtp"
    )
    return [out.outputs[0] for out in llm.generate(PROMPTS, params)]


def _drafting(outputs: list[CompletionOutput]) -> list[SpeculationSummary]:
    """All but the time that it saved, which no two runs share."""
    return [
        dataclasses.replace(o.speculation, estimated_time_saved_s=0.0) for o in outputs if o.speculation is not None
    ]


def _accepted(outputs: list[CompletionOutput]) -> int:
    return sum(output.speculation.accepted for output in outputs if output.speculation is not None)


@pytest.mark.parametrize("kernels", ["compiled", pytest.param("torch", marks=pytest.mark.full)])
def test_the_text_is_the_same_and_the_drafts_are_the_other_modules(kernels: str, noisy: Path) -> None:
    with LLM("scout", kernels=kernels, kv_cache_memory_bytes=CACHE, enable_prefix_caching=False) as llm:
        before = _run(llm, 0.8)
        llm.swap_drafter(str(noisy))
        worse = _run(llm, 0.8)
        llm.swap_drafter("scout")
        after = _run(llm, 0.8)

    assert [o.token_ids for o in before] == [o.token_ids for o in worse] == [o.token_ids for o in after]
    assert _accepted(worse) < 0.9 * _accepted(before)
    assert _drafting(after) == _drafting(before)


@pytest.mark.parametrize("stages", [1, pytest.param(2, marks=pytest.mark.full)])
def test_swapping_again_and_again_while_requests_run_changes_no_token(stages: int, noisy: Path) -> None:
    params = [SamplingParams(temperature=t, seed=5, max_tokens=200, ignore_eos=True) for t in (0.0, 0.8, 0.8, 1.0)]
    with LLM("scout", pipeline_parallel_size=stages, kv_cache_memory_bytes=CACHE) as llm:
        alone = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, params)]
        running, swaps = threading.Event(), 0
        running.set()

        def swap() -> None:
            nonlocal swaps
            while running.is_set():
                llm.swap_drafter(str(noisy) if swaps % 2 == 0 else "scout")
                swaps += 1

        swapper = threading.Thread(target=swap)
        swapper.start()
        swapped = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, params)]
        running.clear()
        swapper.join()

    assert swapped == alone
    assert swaps >= 2


def test_a_cut_head_is_swapped_with_its_module(tmp_path: Path) -> None:
    path = tmp_path / "scout"
    shutil.copytree(resolve_model("scout"), path)
    with LLM("scout", kv_cache_memory_bytes=CACHE) as llm:
        before = _run(llm, 0.0)
        never = np.setdiff1d(np.arange(4096, dtype=np.int32), [t for o in before for t in o.token_ids])
        save_file({"token_ids": never.astype(np.int32)}, path / "draft_head.safetensors")
        llm.swap_drafter(str(path))
        after = _run(llm, 0.0)

    assert [o.token_ids for o in after] == [o.token_ids for o in before]
    assert _accepted(before) > 0
    assert _accepted(after) == 0


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", random_config(1, vocab_size=97))
    with LLM("scout", kv_cache_memory_bytes=CACHE) as llm:
        before = _run(llm, 0.0)
        with pytest.raises(OutriderError, match="of another shape than the model that runs"):
            llm.swap_drafter(str(tmp_path / "other"))
        with pytest.raises(OutriderError, match="unknown model 'nowhere'"):
            llm.swap_drafter("nowhere")
        after = _run(llm, 0.0)

    assert _drafting(after) == _drafting(before)


def test_an_engine_that_does_not_draft_says_so() -> None:
    with (
        LLM("scout", speculation="off", kv_cache_memory_bytes=CACHE) as llm,
        pytest.raises(OutriderError, match="does not draft with an MTP module"),
    ):
        llm.swap_drafter("scout")
