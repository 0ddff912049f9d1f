"""What settings come to with this model on this machine: device, numerics, type, length."""

import logging

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.model.config import ModelConfig
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.loading")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_in_force(config: EngineConfig) -> torch.device:
    """OutriderError if what was asked for is not there."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise OutriderError('device="cuda": this machine has no CUDA device that torch can use; try device="cpu"')
    return torch.device(config.device)


def numerics_in_force(config: EngineConfig, device: torch.device) -> str:
    """What is in force: "exact" is for CPUs, until GPUs have kernels in the canonical order."""
    return config.numerics if device.type == "cpu" else "fast"


def dtype_in_force(config: EngineConfig, device: torch.device) -> torch.dtype:
    """By default float32 on a CPU, and bfloat16 on a GPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[config.dtype]


def length_in_force(config: EngineConfig, model: ModelConfig) -> int:
    """The model's own unless a shorter one is asked for; ValueError for a longer one."""
    if config.max_model_len is None:
        return model.max_position_embeddings
    if config.max_model_len > model.max_position_embeddings:
        raise ValueError(
            f"max_model_len must be at most the model's {model.max_position_embeddings}, got {config.max_model_len}"
        )
    return config.max_model_len


def fitted_length(config: EngineConfig, max_model_len: int, blocks: int) -> int:
    """The length that a cache of `blocks` can hold: the model's own is cut to it, one asked for is an error."""
    tokens = blocks * config.block_size
    if tokens >= max_model_len:
        return max_model_len
    cure = f"the cache holds {tokens} tokens: raise kv_cache_memory_bytes"
    if config.max_model_len is not None or tokens < 2:
        raise OutriderError(f"max_model_len={max_model_len} does not fit, {cure}")
    log.warning("max_model_len is %d and not the model's %d, %s", tokens, max_model_len, cure)
    return tokens
