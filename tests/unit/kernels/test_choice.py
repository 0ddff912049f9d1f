"""When the compiled kernels are chosen, and the errors where they are not available."""

from typing import Any

import pytest
import torch

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.loading.fingerprint import fingerprint
from outrider.workers.loading.kernel_choice import resolve_kernels
from outrider.workers.loading.model import useful_threads
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCOUT = ModelConfig.load(resolve_model("scout"))


@pytest.mark.parametrize("kernels", ["auto", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"quantization": "int8"}, {"numerics": "fast"}])
def test_a_cpu_runs_them_where_they_can_be_had(kernels: str, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    assert resolve_kernels(EngineConfig(kernels=kernels, **settings), CPU, dtype, SCOUT) == "compiled"


@pytest.mark.parametrize(
    ("settings", "device", "dtype"),
    [
        ({"kernels": "torch"}, CPU, torch.float32),
        ({}, CPU, torch.float16),
        ({"kernels": "torch"}, CUDA, torch.bfloat16),
    ],
    ids=["asked for", "float16", "a GPU"],
)
def test_torchs_path_runs_without_a_word_where_that_is_meant(
    settings: dict[str, Any], device: torch.device, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve_kernels(EngineConfig(**settings), device, dtype, SCOUT) == "torch"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [(CUDA, torch.bfloat16, "device is cuda"), (CPU, torch.float16, "model is in float16")],
)
def test_asking_for_them_where_they_cannot_run_is_an_error_that_says_why(
    device: torch.device, dtype: torch.dtype, why: str
) -> None:
    with pytest.raises(OutriderError, match=f'kernels="compiled" is not available: .*{why}'):
        resolve_kernels(EngineConfig(kernels="compiled"), device, dtype, SCOUT)


@pytest.mark.parametrize(
    ("settings", "device", "dtype", "why"),
    [
        ({"kernels": "torch"}, CPU, torch.float32, 'kernels="torch" was asked for'),
        ({}, CUDA, torch.bfloat16, "device is cuda"),
        ({}, CPU, torch.float16, "model is in float16"),
    ],
)
def test_8_bit_weights_without_them_are_an_error_that_says_why(
    settings: dict[str, Any], device: torch.device, dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name in ("quantization", "draft_quantization"):
        with pytest.raises(OutriderError, match=f'^{name}="int8" needs the compiled kernels: .*{why}'):
            resolve_kernels(EngineConfig(**{name: "int8"}, **settings), device, dtype, SCOUT)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kernels", "fast"), ("kernels", None), ("quantization", "int4"), ("draft_quantization", "fp8")],
)
def test_an_unknown_setting_is_refused_by_name_with_what_there_is(name: str, value: str | None) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be one of .*(compiled|int8).*, got {value!r}"):
        EngineConfig(**{name: value})  # type: ignore[arg-type]  # a table


def test_both_settings_reach_a_rank() -> None:
    config = EngineConfig(kernels="torch", quantization="int8")

    assert EngineConfig.from_json(config.to_json()) == config


def test_each_way_to_compute_has_a_fingerprint_of_its_own() -> None:
    ways: list[tuple[dict[str, Any], torch.dtype, str]] = [
        ({}, torch.float32, "compiled"),
        ({}, torch.float32, "torch"),
        ({}, torch.bfloat16, "compiled"),
        ({"quantization": "int8"}, torch.float32, "compiled"),
        ({"quantization": "int8"}, torch.bfloat16, "compiled"),
        ({"numerics": "fast"}, torch.float32, "compiled"),
    ]

    found = {fingerprint(EngineConfig(**settings), "hash", dtype, CPU, kernels) for settings, dtype, kernels in ways}

    assert len(found) == len(ways)
    assert fingerprint(EngineConfig(kernels="auto"), "hash", torch.float32, CPU, "compiled") in found


def test_the_split_is_part_of_the_fingerprint_only_if_sums_are_split() -> None:
    def found(numerics: str) -> set[str]:
        configs = [EngineConfig(numerics=numerics, tensor_parallel_size=size) for size in (1, 2, 4)]
        return {fingerprint(config, "hash", torch.bfloat16, CPU, "torch") for config in configs}

    assert len(found("exact")) == 1
    assert len(found("fast")) == 3


@pytest.mark.parametrize(
    ("hidden", "available", "used"),
    [(256, 1, 1), (256, 2, 2), (64, 16, 4), (256, 64, 4), (2048, 64, 32), (7168, 64, 64)],
)
def test_a_narrow_model_takes_few_threads_and_none_takes_more_than_there_are(
    hidden: int, available: int, used: int
) -> None:
    assert useful_threads(hidden, available) == used
