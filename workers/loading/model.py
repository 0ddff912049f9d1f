"""Loads a rank's parts of a model for torch, the compiled kernels or the Triton kernels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from outrider.kernels.cpu.context import Context
from outrider.workers.config import COUPLED, EngineConfig
from outrider.workers.drafting.compiled_draft_model import CompiledDraftModel
from outrider.workers.drafting.draft_model import ModuleDraftModel
from outrider.workers.drafting.gpu_draft_model import GpuDraftModel
from outrider.workers.drafting.study import Blocks, StudyDraftModel, StudyHead
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.experts.layer import ExpertLayer
from outrider.workers.model.compiled.loading import CompiledLoader
from outrider.workers.model.compiled.model import CompiledModules, CompiledStage
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.draft_head import draft_head_ids
from outrider.workers.model.gpu.stage import GpuModules, GpuStage
from outrider.workers.model.gpu.weights import GpuLoader, moving_layers
from outrider.workers.model.loading import Progress
from outrider.workers.model.moe import spread_experts
from outrider.workers.model.mtp import MtpModules
from outrider.workers.model.stage_model import StageModel
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.sharing import Columns, Sharing
from outrider.workers.sampling.compiled_head import CompiledHead
from outrider.workers.sampling.gpu_head import GpuHead
from outrider.workers.sampling.head import Head
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.torch_head import TorchHead
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

log = logging.getLogger("outrider.loading")

_FEW_THREADS = 4
_WIDTH_PER_THREAD = 64  # outputs of a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """Which part of which model a rank runs, and with which settings."""

    config: EngineConfig
    model: ModelConfig
    checkpoint: Checkpoint
    layers: range
    device: torch.device
    dtype: torch.dtype
    kernels: str  # from kernel_choice.py: "compiled", "triton" or "torch"
    drafts: bool  # whether this rank drafts with MTP modules
    starts: SequenceStarts
    progress: Progress
    sharing: Sharing = field(default_factory=Sharing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a rank runs."""

    stage: StageModel
    module: MtpModules | CompiledModules | GpuModules | None  # on the first stage, if it drafts
    head: Head | None  # on the last stage
    draft_model: ModuleDraftModel | None
    hidden_dtype: torch.dtype  # of hidden states that are sent between stages
    expert_layers: Sequence[ExpertLayer] = ()  # the stage's and the modules', with expert parallelism

    @property
    def cache_bytes_per_block(self) -> int:
        return self.stage.cache_bytes_per_block + (self.module.cache_bytes_per_block if self.module else 0)

    def allocate_cache(self, num_blocks: int) -> None:
        self.stage.allocate_cache(num_blocks)
        if self.module is not None:
            self.module.allocate_cache(num_blocks)


def draft_quantization(config: EngineConfig) -> str | None:
    """For drafters on the compiled kernels; None: as the model. Int8 reads fewer bytes and changes no token."""
    return "int8" if config.draft_quantization == "auto" else config.draft_quantization


def useful_threads(hidden_size: int, available: int) -> int:
    """Few threads for a narrow model: its steps are too small for many, which would mostly synchronize."""
    return min(available, max(_FEW_THREADS, hidden_size // _WIDTH_PER_THREAD))


def load_parts(wanted: ModelPart) -> Parts:
    """Reads this rank's weights. CheckpointError describes what is wrong with them."""
    load = {"compiled": _load_compiled, "triton": _load_gpu, "torch": _load_torch}[wanted.kernels]
    return load(wanted)


def _gpu_loader(wanted: ModelPart) -> GpuLoader:
    return GpuLoader(
        config=wanted.model, checkpoint=wanted.checkpoint, dtype=wanted.dtype, device=wanted.device,
        shard=wanted.sharing.shard, moving=wanted.config.enable_eplb,
    )  # fmt: skip


def _load_gpu(wanted: ModelPart) -> Parts:
    loader, block_size = _gpu_loader(wanted), wanted.config.block_size
    stage = GpuStage.load(
        loader, wanted.layers, block_size=block_size, sharing=wanted.sharing, progress=wanted.progress,
        in_graphs=not wanted.config.enforce_eager, fp8_cache=wanted.config.kv_cache_dtype == "fp8",
    )  # fmt: skip
    module = GpuModules.load(loader, stage) if wanted.drafts else None
    return Parts(
        stage=stage,
        module=module,
        head=GpuHead(stage, wanted.starts) if stage.head is not None else None,
        draft_model=GpuDraftModel(module, wanted.starts, _vocabulary(wanted)) if module is not None else None,
        hidden_dtype=wanted.dtype,
        expert_layers=moving_layers([*stage.layers, *(each.layer for each in (module.modules if module else []))]),
    )


def _load_compiled(wanted: ModelPart) -> Parts:
    context = Context(useful_threads(wanted.model.hidden_size, torch.get_num_threads()))
    cache = _weight_cache(wanted)
    loader = _compiled_loader(wanted, cache)
    stage = CompiledStage(context, loader, wanted.layers, wanted.progress)
    module = _compiled_module(wanted, stage, loader) if wanted.drafts else None
    if cache is not None:
        cache.trim()
    return Parts(
        stage=stage,
        module=module,
        head=CompiledHead(context, stage.head, wanted.starts) if stage.head is not None else None,
        draft_model=CompiledDraftModel(module, wanted.starts) if module is not None else None,
        hidden_dtype=torch.float32,
        expert_layers=loader.expert_layers,
    )


def _weight_cache(wanted: ModelPart) -> WeightCache | None:
    config = wanted.config
    if config.weight_cache_dir is None:
        return None
    folder, max_bytes = Path(config.weight_cache_dir).expanduser(), int(config.weight_cache_max_gib * 2**30)
    return WeightCache(folder, max_bytes, wanted.checkpoint)


def _compiled_loader(wanted: ModelPart, cache: WeightCache | None) -> CompiledLoader:
    return CompiledLoader(
        wanted.model,
        wanted.checkpoint,
        dtype=wanted.dtype,
        quantization=wanted.config.quantization,
        draft_quantization=draft_quantization(wanted.config),
        block_size=wanted.config.block_size,
        fast=wanted.config.numerics == "fast",
        sharing=wanted.sharing,
        cache=cache,
    )


def _compiled_module(wanted: ModelPart, stage: CompiledStage, loader: CompiledLoader) -> CompiledModules:
    return CompiledModules(stage, loader, draft_head_ids(wanted.checkpoint.path, wanted.model))


def _torch_module(wanted: ModelPart, stage: Stage) -> MtpModules:
    return MtpModules.load(
        wanted.model, wanted.checkpoint, stage, numerics=wanted.config.numerics, device=wanted.device,
        dtype=wanted.dtype, block_size=wanted.config.block_size,
    )  # fmt: skip


def load_module(wanted: ModelPart, stage: StageModel, cache_of: object) -> MtpModules | CompiledModules | GpuModules:
    """The MTP modules of `wanted.checkpoint` for a running stage. They share the cache of its modules `cache_of`.

    CheckpointError if the number of modules differs.
    """
    assert isinstance(cache_of, MtpModules | CompiledModules | GpuModules), "modules of the stage that runs"
    found = wanted.checkpoint.mtp_modules(wanted.model)
    if not found:
        raise CheckpointError(f"checkpoint {wanted.checkpoint.path} has no MTP weights to swap in")
    if found != cache_of.count:
        raise CheckpointError(
            f"checkpoint {wanted.checkpoint.path} has weights of {found} MTP modules, and {cache_of.count} are in use:"
            " only as many can be swapped in"
        )
    module: MtpModules | CompiledModules | GpuModules
    if isinstance(cache_of, GpuModules):
        assert isinstance(stage, GpuStage), "a rank's parts are of one kind"
        module = GpuModules.load(_gpu_loader(wanted), stage)
        module.cache = cache_of.cache
        return module
    if isinstance(cache_of, CompiledModules):
        assert isinstance(stage, CompiledStage), "a rank's parts are of one kind"
        cache = _weight_cache(wanted)
        module = _compiled_module(wanted, stage, _compiled_loader(wanted, cache))
        if cache is not None:
            cache.trim()
        module.share_cache(cache_of)
        return module
    assert isinstance(stage, Stage), "a rank's parts are of one kind"
    module = _torch_module(wanted, stage)
    module.cache = cache_of.cache
    return module


def _load_torch(wanted: ModelPart) -> Parts:
    model, checkpoint, config = wanted.model, wanted.checkpoint, wanted.config
    stage = Stage.load(
        model, checkpoint, wanted.layers, numerics=config.numerics, device=wanted.device, dtype=wanted.dtype,
        block_size=config.block_size, progress=wanted.progress, sharing=wanted.sharing,
    )  # fmt: skip
    module = _torch_module(wanted, stage) if wanted.drafts else None
    parts = Parts(
        stage=stage,
        module=module,
        head=TorchHead(stage, wanted.starts) if stage.head is not None else None,
        draft_model=TorchDraftModel(module, wanted.starts, _vocabulary(wanted)) if module is not None else None,
        hidden_dtype=wanted.dtype,
        expert_layers=spread_experts(stage, module),
    )
    if config.verification == COUPLED or module is None:
        return parts
    blocks: Blocks = {}
    head = StudyHead(stage, wanted.starts, config.verification, blocks)
    return replace(parts, head=head, draft_model=StudyDraftModel(module, wanted.starts, blocks))


def _vocabulary(wanted: ModelPart) -> Columns | None:
    """Joins slices of logits; None if this rank has all of them."""
    sharing = wanted.sharing
    return sharing.columns(wanted.model.vocab_size, "logits", unit=1) if sharing.tensor.size > 1 else None
