"""The numerics fingerprint: replicas with an equal one compute the same bits, so a sequence may move between them."""

import hashlib

import torch

from outrider.workers.config import EngineConfig

ARITHMETIC_VERSION = 2  # raise it whenever the order of any sum changes


def fingerprint(config: EngineConfig, checkpoint_hash: str, dtype: torch.dtype, device: torch.device) -> str:
    """16 hex digits over all that decides the bits of a logit: not over how the model is split."""
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    parts = (ARITHMETIC_VERSION, checkpoint_hash, config.numerics, dtype, device.type, processor, torch.__version__)
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
