"""DeepSpeed ZeRO around a drafter: builds, steps, saves and gathers it. The only file that knows DeepSpeed.

DeepSpeed is imported here alone, and this file by the training ranks alone: the import takes seconds.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.runtime.zero.partition_parameters import GatheredParameters

from outrider.workers.training.distill.drafting import Drafting
from outrider.workers.training.distill.module import TrainableMtp
from outrider.workers.training.distill.names import Source, freeze
from outrider.workers.training.distill.settings import LIVE_PARAMETERS, TrainingSettings
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

# On CPUs DeepSpeed would compile its own collectives, which takes a minute, and they have no timeout. Use gloo.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CLIP = 1.0
_KEPT_CHECKPOINTS = 2


def deepspeed_config(settings: TrainingSettings, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings. Every relevant one is set, so that no default decides."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
    }
    if settings.zero_stage == 3:
        zero |= {"stage3_max_live_parameters": LIVE_PARAMETERS, "stage3_max_reuse_distance": LIVE_PARAMETERS}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": settings.batch_rows,
        "train_micro_batch_size_per_gpu": settings.batch_rows // (world_size * settings.accumulate),
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": _CLIP,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: DeepSpeed's takes a minute to compile
        "steps_per_print": 1 << 30,
    }


class ZeroTrainer:
    """One rank's part of the training. Collective: every rank calls every method, in the same order."""

    def __init__(self, settings: TrainingSettings, config: ModelConfig, source: Source, device: torch.device) -> None:
        self._settings, self._config, self._source, self.device = settings, config, source, device
        self.world_size = dist.get_world_size()
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)  # uses the existing group
        zero = deepspeed_config(settings, self.world_size)
        self.module = self._build(zero)
        freeze(self.module, settings.trained)
        drafting = Drafting(
            self.module,
            source.embedding().to(device),
            source.head().to(device),
            depth=settings.depth,
            loss=settings.loss,
        )
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.engine, *_ = deepspeed.initialize(model=drafting, optimizer=optimizer, config=zero)

    def descend(self, loss: Tensor, learning_rate: float) -> None:
        """One part of a step; the last of `accumulate` parts updates the weights."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.backward(loss)
        self.engine.step()

    def summed(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`."""
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def save(self, step: int) -> None:
        """Saves a checkpoint after `step` steps; older ones are deleted once it is complete."""
        folder, state = self._settings.checkpoint_folder, {"step": step, "made_with": self._made_with()}
        self.engine.save_checkpoint(
            str(folder), tag=f"step-{step:08}", client_state=state, exclude_frozen_parameters=True
        )
        dist.barrier()
        if dist.get_rank() == 0:
            _drop_old(folder)

    def resume(self) -> int:
        """Loads the newest checkpoint and returns its number of finished steps; 0 without a checkpoint."""
        folder = self._settings.checkpoint_folder
        if not (folder / "latest").is_file():
            return 0
        found, state = self.engine.load_checkpoint(str(folder), load_module_strict=False)
        if found is None:
            raise OutriderError(f"cannot load the checkpoint in {folder}: remove the folder to begin anew")
        if state["made_with"] != self._made_with():
            others = _differences(state["made_with"], self._made_with())
            raise OutriderError(
                f"{folder} was made with other settings or ranks ({others}): go on with those, or choose another --work"
            )
        return int(state["step"])

    def whole(self, parameter: Tensor) -> Tensor:
        """The complete parameter, on the CPU of rank 0; other ranks get an empty tensor of its shape."""
        with self._gathered(parameter):
            if dist.get_rank() == 0:
                return parameter.detach().to("cpu", copy=True)
            return torch.empty(parameter.shape, device="meta")

    def _build(self, zero: dict[str, Any]) -> TrainableMtp:
        """The module with the checkpoint's weights. With ZeRO 3 no rank has more than one complete parameter."""
        dtype, size = _DTYPES[self._settings.dtype], self._settings.expert_group_size
        if self._settings.zero_stage == 3:
            with deepspeed.zero.Init(config_dict_or_path=zero):
                module = TrainableMtp(self._config, size)
        else:
            module = TrainableMtp(self._config, size).to(dtype=dtype, device=self.device)
        for name, parameter in module.named_parameters():
            with torch.no_grad(), self._gathered(parameter, written_by=0):
                if self._settings.zero_stage != 3 or dist.get_rank() == 0:
                    parameter.copy_(self._source.parameter(module, name, tuple(parameter.shape)))
        if module.is_routed:
            module.set_router_bias(self._source.router_bias().to(self.device))
        return module

    @contextmanager
    def _gathered(self, parameter: Tensor, written_by: int | None = None) -> Iterator[None]:
        partitioned = self._settings.zero_stage == 3
        with GatheredParameters([parameter], modifier_rank=written_by, enabled=partitioned):
            yield

    def _made_with(self) -> dict[str, Any]:
        """The values that a resumed run must share with the checkpoint's run."""
        names = (
            "depth", "trained", "loss", "decay", "steps", "batch_rows", "window", "learning_rate", "warm_up_steps",
            "dtype", "zero_stage", "offload", "accumulate", "held_out", "seed",
        )  # fmt: skip
        return {**{name: getattr(self._settings, name) for name in names}, "ranks": self.world_size}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{name}={before.get(name)}" for name in now if before.get(name) != now[name])


def _drop_old(folder: Path) -> None:
    for old in sorted(folder.glob("step-*"))[:-_KEPT_CHECKPOINTS]:
        shutil.rmtree(old)
