"""Zero difference with the compiled kernels: the text depends on neither drafts, companions, stages nor a cut head.

The reference of every case is the plainest run: speculation off, alone, one stage. `full`: PyTorch beside them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.model.draft_head import DRAFT_HEAD_FILE
from outrider.workers.text.outputs import CompletionOutput
from outrider.workers.types.errors import CheckpointError

CACHE = 256 << 20
WEIGHTS: dict[str, dict[str, Any]] = {
    "float32": {"kernels": "compiled"},
    "bf16": {"kernels": "compiled", "dtype": "bfloat16"},
    "int8": {"kernels": "compiled", "quantization": "int8"},
    "bf16 int8": {"kernels": "compiled", "dtype": "bfloat16", "quantization": "int8"},
}
SAMPLINGS: tuple[dict[str, Any], ...] = (  # by turns
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.02},
)
SPECULATIONS: tuple[str | int, ...] = (1, 3, "auto")
Text = tuple[list[int], str, str | None]


def prompts(count: int) -> list[str]:
    texts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())
    return [*texts["code"], *texts["prose"]][:: -(-len(texts["code"] + texts["prose"]) // count)]


def generate(
    llm: LLM, some: list[str], speculation: str | int, *, tokens: int = 20, together: bool = True
) -> list[CompletionOutput]:
    params = [
        SamplingParams(seed=1000 + i, max_tokens=tokens, speculation=speculation, **SAMPLINGS[i % len(SAMPLINGS)])
        for i in range(len(some))
    ]
    batches = [(some, params)] if together else [([p], [q]) for p, q in zip(some, params, strict=True)]
    return [out.outputs[0] for texts, own in batches for out in llm.generate(texts, own)]


def texts(outputs: list[CompletionOutput]) -> list[Text]:
    return [(out.token_ids, out.text, out.finish_reason) for out in outputs]


def accepted(outputs: list[CompletionOutput]) -> int:
    return sum(out.speculation.accepted for out in outputs if out.speculation)


@pytest.mark.parametrize(
    "weights", [pytest.param(name, marks=pytest.mark.full) if name == "bf16 int8" else name for name in WEIGHTS]
)
def test_the_text_is_the_same_at_every_depth_alone_and_together(weights: str) -> None:
    some = prompts(4)
    with LLM("scout", kv_cache_memory_bytes=CACHE, max_num_batched_tokens=50, **WEIGHTS[weights]) as llm:
        expected = texts(generate(llm, some, "off", together=False))

        assert texts(generate(llm, some, "off")) == expected
        assert texts(generate(llm, some, 3, together=False)) == expected
        for speculation in SPECULATIONS:
            outputs = generate(llm, some, speculation)
            assert texts(outputs) == expected
            assert accepted(outputs) > 0 or speculation == "auto"


def test_the_text_is_the_same_on_two_stages_as_local_processes() -> None:
    some = prompts(4)
    with LLM("scout", kernels="compiled", kv_cache_memory_bytes=CACHE) as one:
        expected = texts(generate(one, some, "off"))

    with LLM("scout", kernels="compiled", kv_cache_memory_bytes=CACHE, pipeline_parallel_size=2) as split:
        outputs = generate(split, some, 3)
        assert texts(outputs) == expected
        assert accepted(outputs) > 0


@pytest.fixture(scope="module")
def cut_scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scout with a drafting head of every third token."""
    folder = tmp_path_factory.mktemp("cut") / "scout"
    shutil.copytree(resolve_model("scout"), folder)
    save_file({"token_ids": np.arange(0, 4096, 3, dtype=np.int64)}, folder / DRAFT_HEAD_FILE)
    return folder


def test_a_cut_drafting_head_changes_no_text(cut_scout: Path) -> None:
    """It drafts its own tokens only, so fewer drafts stand, but some do."""
    some = prompts(6)
    with LLM(str(cut_scout), kernels="compiled", kv_cache_memory_bytes=CACHE) as llm:
        expected = texts(generate(llm, some, "off"))
        outputs = generate(llm, some, 3)

    assert texts(outputs) == expected
    assert 0 < accepted(outputs) < sum(len(out.token_ids) for out in outputs) / 2


def test_a_damaged_drafting_head_is_refused_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "scout"
    shutil.copytree(resolve_model("scout"), folder)
    (folder / DRAFT_HEAD_FILE).write_bytes(b"no such thing")

    with pytest.raises(CheckpointError, match=DRAFT_HEAD_FILE) as caught:
        LLM(str(folder), kernels="compiled", kv_cache_memory_bytes=CACHE)

    assert "\n" not in str(caught.value)


def test_torchs_path_and_the_compiled_kernels_write_the_same_text() -> None:
    """Up to near-ties, of which these prompts have none."""
    some, found = prompts(3), []
    for kernels in ("compiled", "torch"):
        with LLM("scout", kernels=kernels, kv_cache_memory_bytes=CACHE) as llm:
            found.append(texts(generate(llm, some, 2, tokens=16)))

    assert found[0] == found[1]


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", [*WEIGHTS.values(), {"kernels": "torch"}], ids=[*WEIGHTS, "torch"])
def test_forty_prompts_at_every_depth_on_one_and_two_stages(settings: dict[str, Any]) -> None:
    some = prompts(40)
    with LLM("scout", **settings) as one:
        expected = texts(generate(one, some, "off", tokens=32, together=False))
        for speculation in ("off", *SPECULATIONS, 6):
            for together in (False, True):
                found = texts(generate(one, some, speculation, tokens=32, together=together))
                assert found == expected, (speculation, together)

    with LLM("scout", pipeline_parallel_size=2, **settings) as two:
        for speculation in ("off", *SPECULATIONS):
            assert texts(generate(two, some, speculation, tokens=32)) == expected, speculation


def test_8_bit_weights_of_what_drafts_change_no_token_and_hardly_a_draft() -> None:
    some, taken = prompts(8), []
    with LLM("scout", speculation="off", kv_cache_memory_bytes=CACHE) as llm:
        plain = texts(generate(llm, some, "off", tokens=40))

    for draft_quantization in (None, "int8"):
        with LLM("scout", draft_quantization=draft_quantization, kv_cache_memory_bytes=CACHE) as llm:
            outputs = generate(llm, some, 3, tokens=40)
        assert texts(outputs) == plain
        taken.append(accepted(outputs))

    assert taken[0] > 100
    assert taken[1] == pytest.approx(taken[0], rel=0.05)
