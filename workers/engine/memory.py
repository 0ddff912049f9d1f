"""How many blocks of cache a rank has room for. Pure, but for asking how much memory is free."""

import os

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.errors import OutriderError

_CPU_SHARE = 0.25  # of the memory that is free once the weights are loaded: other ranks and programs share it
_CUDA_SHARE = 0.85


def blocks_for(config: EngineConfig, max_model_len: int, bytes_per_block: int, free_bytes: int) -> int:
    """Blocks that fit `kv_cache_memory_bytes`, or by default a share of what is free; no more than could be used.

    OutriderError if not even one block fits.
    """
    budget = config.kv_cache_memory_bytes if config.kv_cache_memory_bytes is not None else free_bytes
    usable = config.max_num_seqs * -(-max_model_len // config.block_size)
    blocks = min(budget // bytes_per_block, usable)
    if blocks < 1:
        raise OutriderError(
            f"kv_cache_memory_bytes={budget} holds no block of the cache: one takes {bytes_per_block} bytes here"
        )
    return blocks


def free_bytes(device: torch.device) -> int:
    """The share of this device's free memory that the cache may take by default."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _CUDA_SHARE)
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _CPU_SHARE)
