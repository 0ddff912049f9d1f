"""The numerics fingerprint: replicas with an equal one compute the same bits, so a sequence may move between them."""

import hashlib

import torch

from outrider.kernels.cpu.build import instruction_set
from outrider.workers.config import COUPLED, EngineConfig

ARITHMETIC_VERSION = 4  # raise it whenever the order of any sum changes


def fingerprint(
    config: EngineConfig, checkpoint_hash: str, dtype: torch.dtype, device: torch.device, kernels: str
) -> str:
    """16 hex digits over all that decides the bits of a logit: not over how the model is split."""
    model: tuple[object, ...] = (checkpoint_hash, dtype, config.quantization)
    if config.kv_cache_dtype != "auto":
        model = (*model, config.kv_cache_dtype)
    if config.verification != COUPLED:  # what comes out of the bits counts too: such a text cannot go on elsewhere
        model = (*model, config.verification, config.speculation)
    parts = (ARITHMETIC_VERSION, *model, config.numerics, kernels, device.type, *_processor(device, kernels))
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _processor(device: torch.device, kernels: str) -> tuple[str, ...]:
    """What of the machine counts. The compiled kernels have the same bits with AVX2 and AVX-512, whatever torch is."""
    if kernels == "compiled":
        return ("plain" if instruction_set() == "plain" else "fma",)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.__version__
    return torch.backends.cpu.get_cpu_capability(), torch.__version__
