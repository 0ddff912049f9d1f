"""Resolves settings for this model and machine: device, numerics, dtype, maximum length."""

import logging

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

log = logging.getLogger("outrider.loading")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(config: EngineConfig, local_rank: int = 0) -> torch.device:
    """The rank's device. `local_rank` is its index among the ranks that share the process's visible devices.

    OutriderError if the requested device is not available.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise OutriderError('device="cuda": this machine has no CUDA device that torch can use; try device="cpu"')
    devices = torch.cuda.device_count()
    if local_rank >= devices:
        raise OutriderError(
            f"rank {local_rank} of this machine needs a CUDA device of its own, and there are {devices}:"
            ' use fewer ranks, or device="cpu"'
        )
    return torch.device("cuda", local_rank)


def resolve_numerics(config: EngineConfig, kernels: str, device: torch.device) -> str:
    """On a GPU, "exact" needs kernels with a fixed order of sums, and no sum split over ranks. Otherwise "fast"."""
    if device.type == "cpu" or config.numerics == "fast":
        return config.numerics
    if kernels == "torch":
        why = "torch's own kernels on a GPU have no fixed order of sums"
    elif config.tensor_parallel_size > 1:
        why = "on GPUs sums are split over tensor_parallel_size ranks, so bits depend on their number"
    else:
        return config.numerics
    log.warning('numerics is "fast" and not "exact": %s', why)
    return "fast"


def resolve_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """By default float32 on a CPU and bfloat16 on a GPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[config.dtype]


def resolve_length(config: EngineConfig, model: ModelConfig) -> int:
    """The model's maximum length unless the setting is shorter; ValueError if it is longer."""
    if config.max_model_len is None:
        return model.max_position_embeddings
    if config.max_model_len > model.max_position_embeddings:
        raise ValueError(
            f"max_model_len must be at most the model's {model.max_position_embeddings}, got {config.max_model_len}"
        )
    return config.max_model_len


def fitted_length(config: EngineConfig, max_model_len: int, blocks: int) -> int:
    """The length that a cache of `blocks` blocks can hold.

    It replaces the model's default; a longer setting is an error.
    """
    tokens = blocks * config.block_size
    if tokens >= max_model_len:
        return max_model_len
    cure = f"the cache holds {tokens} tokens: raise kv_cache_memory_bytes"
    if config.max_model_len is not None or tokens < 2:
        raise OutriderError(f"max_model_len={max_model_len} does not fit, {cure}")
    log.warning("max_model_len is %d and not the model's %d, %s", tokens, max_model_len, cure)
    return tokens
