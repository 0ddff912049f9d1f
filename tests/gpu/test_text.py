"""On a pretended GPU, completions equal the CPU's, with the Triton path's twins and with the PyTorch implementation."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gpu.pretend_cuda import pretending

from outrider import LLM, SamplingParams
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

pytest.importorskip("triton")
HERE = Path(__file__).parent
PROMPTS = [[5, 6, 7, 8, 9] * 4, [30, 40, 50], [7] * 40]
TOKENS = 20
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.8, "seed": 7},
    "hot": {"temperature": 1.5, "seed": 8},
    "top_p": {"top_p": 0.8, "seed": 1},
    "top_k": {"top_k": 5, "seed": 2},
    "min_p": {"min_p": 0.1, "seed": 3},
    "biased": {"logit_bias": {77: 5.0}, "seed": 5},
    "grammar": {"structured_outputs": StructuredOutputsParams(regex="(ab|cd)+e"), "seed": 6, "ignore_eos": False},
    "scored": {"logprobs": 2, "prompt_logprobs": 1, "temperature": 0},
    "penalties": {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "seed": 4},
}
_PATHS = (
    {"speculation": "off"},
    {"speculation": 3},
    pytest.param({"speculation": 3, "enforce_eager": True}, id="eager"),
    pytest.param({"speculation": "auto"}, marks=pytest.mark.full),
)
_SETTINGS = {
    "model": "scout",
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
}


def _params(request: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**{"max_tokens": TOKENS, "ignore_eos": True, **request})


def _said(names: Sequence[str] = tuple(REQUESTS), **settings: Any) -> dict[str, list[int]]:
    """The completions of REQUESTS with these names, from one batch."""
    with LLM(**{**_SETTINGS, "kv_cache_memory_bytes": 1 << 26, **settings}) as llm:
        prompts = [PROMPTS[n % len(PROMPTS)] for n in range(len(names))]
        outputs = llm.generate(prompts, [_params(REQUESTS[name]) for name in names])
    return {name: output.outputs[0].token_ids for name, output in zip(names, outputs, strict=True)}


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, list[int]]:
    return _said(device="cpu")


@pytest.fixture(scope="module", params=_PATHS)
def on_gpu(request: pytest.FixtureRequest) -> Iterator[dict[str, list[int]]]:
    with pretending() as counts:
        said = _said(device="cuda", **request.param)
        assert (counts.kinds["graph"] > 0) == ("enforce_eager" not in request.param)
        yield said


@pytest.mark.parametrize("name", REQUESTS)
def test_completions_equal_the_cpus(name: str, on_cpu: dict[str, list[int]], on_gpu: dict[str, list[int]]) -> None:
    assert on_gpu[name] == on_cpu[name]


@pytest.mark.full
def test_torchs_path_gives_the_same_completions(on_cpu: dict[str, list[int]]) -> None:
    with pretending():
        assert _said(device="cuda", kernels="torch", speculation=2) == on_cpu


@pytest.mark.parametrize(
    "names", [("greedy", "drawn", "grammar"), pytest.param(tuple(REQUESTS), marks=pytest.mark.full)], ids=len
)
def test_with_an_fp8_cache_drafts_change_no_token(names: tuple[str, ...]) -> None:
    with pretending():
        off, on = (_said(names, device="cuda", kv_cache_dtype="fp8", speculation=each) for each in ("off", 3))

    assert on == off


def test_an_fp8_cache_needs_the_kernels_of_a_gpu() -> None:
    with pytest.raises(
        OutriderError, match='kv_cache_dtype="fp8" needs the Triton kernels of a GPU: they are for GPUs'
    ):
        _said(device="cpu", kv_cache_dtype="fp8")


_SPLITS = {
    "TP2": {"tensor_parallel_size": 2},
    "PP2": {"pipeline_parallel_size": 2},
    "EP2": {"tensor_parallel_size": 2, "expert_parallel_size": 2},
    "DP2": {"data_parallel_size": 2},
    "DP2+EP2": {"data_parallel_size": 2, "expert_parallel_size": 2},
    "DP2xTP2+EP4": {"data_parallel_size": 2, "tensor_parallel_size": 2, "expert_parallel_size": 4},
    "DP2+EP2, experts move": {
        "data_parallel_size": 2, "expert_parallel_size": 2, "enable_eplb": True, "num_redundant_experts": 2,
        "eplb_window_size": 4, "eplb_step_interval": 4,
    },
    "EP2, experts move": {
        "tensor_parallel_size": 2, "expert_parallel_size": 2, "enable_eplb": True, "num_redundant_experts": 2,
        "eplb_window_size": 4, "eplb_step_interval": 4,
    },
}  # fmt: skip


_CASES = [name if name in ("TP2", "DP2+EP2") else pytest.param(name, marks=pytest.mark.full) for name in _SPLITS]


@pytest.mark.parametrize("split", _CASES)
def test_several_ranks_give_the_same_completions(
    split: str, on_cpu: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(HERE / "site"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    assert _said(device="cuda", speculation=2, **_SPLITS[split]) == on_cpu
