"""The numerics fingerprint. Replicas with equal ones compute the same bits, so sequences may move between them."""

import hashlib

import torch

from outrider.kernels.cpu.build import instruction_set
from outrider.workers.config import COUPLED, EngineConfig

ARITHMETIC_VERSION = 4  # raise it whenever the order of any sum changes


def fingerprint(
    config: EngineConfig, checkpoint_hash: str, dtype: torch.dtype, device: torch.device, kernels: str
) -> str:
    """16 hex digits: a hash of everything that decides a logit's bits. `config` has the resolved numerics.

    With "exact" numerics the split of the model decides nothing. With "fast" numerics sums are split over ranks.
    """
    model: tuple[object, ...] = (checkpoint_hash, dtype, config.quantization)
    if config.kv_cache_dtype != "auto":
        model = (*model, config.kv_cache_dtype)
    if config.verification != COUPLED:  # the text depends on drafts, so it cannot resume on another replica
        model = (*model, config.verification, config.speculation)
    split = config.tensor_parallel_size, config.expert_parallel_size
    if config.numerics == "fast" and max(split) > 1:
        model = (*model, *split)
    parts = (ARITHMETIC_VERSION, *model, config.numerics, kernels, device.type, *_processor(device, kernels))
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def _processor(device: torch.device, kernels: str) -> tuple[str, ...]:
    """The machine's part. Compiled kernels have the same bits with AVX2 and AVX-512, whatever torch's version."""
    if kernels == "compiled":
        return ("plain" if instruction_set() == "plain" else "fma",)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.__version__
    return torch.backends.cpu.get_cpu_capability(), torch.__version__
