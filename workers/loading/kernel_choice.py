"""Chooses the kernels that run a model: torch, compiled or Triton."""

import logging

import torch

from outrider.kernels.cpu import library
from outrider.kernels.cpu.compiler import BuildError
from outrider.kernels.gpu import language
from outrider.workers.config import COUPLED, EngineConfig
from outrider.workers.model.gpu.decoder import shape_obstacle
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

log = logging.getLogger("outrider.loading")

_COMPILED_DTYPES = (torch.float32, torch.bfloat16)
_CAPABILITY = (9, 0)  # tests/gpu/compiling.py: FP8 products, and the shared memory that kernels use


def resolve_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype, model: ModelConfig) -> str:
    """The kernels to use: "compiled", "triton" or "torch". OutriderError if the requested ones are not available."""
    obstacle = _obstacle(config, device, dtype)
    on_gpu = _gpu_obstacle(config, model, device)
    _check_demands(config, obstacle, on_gpu)
    if obstacle is None:
        return "compiled"
    if on_gpu is None:
        return "triton"
    if device.type == "cuda" and config.kernels == "auto":
        log.warning("running on torch's own kernels, many times slower, with weights in %s: %s", dtype, on_gpu)
    if isinstance(obstacle, BuildError):
        log.warning("no compiled kernels: %s; running in PyTorch, several times slower", obstacle)
    if config.weight_cache_dir is not None:
        log.warning("weight_cache_dir is not used by the PyTorch implementation (%s)", obstacle)
    return "torch"


def _check_demands(config: EngineConfig, obstacle: str | BuildError | None, on_gpu: str | None) -> None:
    """OutriderError if a setting needs the compiled or the GPU kernels, and they cannot be used."""
    if on_gpu is not None:
        if config.kv_cache_dtype == "fp8":
            raise OutriderError(f'kv_cache_dtype="fp8" needs the Triton kernels of a GPU: {on_gpu}')
        if config.kernels == "triton":
            raise OutriderError(f'kernels="triton" is not available: {on_gpu}')
    if obstacle is not None:
        if config.kernels == "compiled":
            raise OutriderError(f'kernels="compiled" is not available: {obstacle}')
        if config.quantization is not None:
            raise OutriderError(f'quantization="{config.quantization}" needs the compiled kernels: {obstacle}')
        if config.draft_quantization == "int8":
            raise OutriderError(f'draft_quantization="int8" needs the compiled kernels: {obstacle}')


def _obstacle(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> str | BuildError | None:
    """Why the compiled kernels cannot be used; None if they can."""
    if config.kernels in ("torch", "triton"):
        return f'kernels="{config.kernels}" was asked for'
    if config.verification != COUPLED:
        return f'verification="{config.verification}" is for experiments and available in PyTorch only'
    if device.type != "cpu":
        return f"they are for CPUs, and the device is {device.type}"
    if dtype not in _COMPILED_DTYPES:
        return f"they support float32 and bfloat16, and the model is in {str(dtype).removeprefix('torch.')}"
    try:
        library.load()
    except BuildError as error:
        return error
    return None


def _gpu_obstacle(config: EngineConfig, model: ModelConfig, device: torch.device) -> str | None:
    """Why the kernels of kernels/gpu cannot be used; None if they can."""
    if config.kernels not in ("auto", "triton"):
        return f'kernels="{config.kernels}" was asked for'
    if device.type != "cuda":
        return f"they are for GPUs, and the device is {device.type}"
    if language.triton is None:
        return "triton is not installed: pip install 'outrider[gpu]'"
    if config.verification != COUPLED:
        return f'verification="{config.verification}" is for experiments and available in PyTorch only'
    return _device_obstacle(device) or shape_obstacle(model)


def _device_obstacle(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "they are checked for NVIDIA GPUs only"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        needed, found = ("{}.{}".format(*each) for each in (_CAPABILITY, capability))
        return f"they need compute capability {needed} or later (H100), and the device has {found}"
    return None
