"""A small random model with its own text, harvested by the engine, for the tests of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import random_config, write_checkpoint
from rounds import random_tokens

from outrider import LLM
from outrider.workers.model.weights import Checkpoint
from outrider.workers.training.distill.harvest import plan_tasks, run_harvest
from outrider.workers.training.distill.module import TrainableMtp
from outrider.workers.training.distill.names import Source
from outrider.workers.training.distill.prompts import Prompt
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.model.model_config import ModelConfig

MAX_TOKENS = 40


@dataclass(frozen=True)
class Harvested:
    """A checkpoint, the prompts, and a work folder with the text that was harvested from them."""

    checkpoint: Path
    config: dict[str, Any]
    prompts: list[Prompt]
    work: Path

    def settings(self, work: Path, **changes: Any) -> TrainingSettings:
        """Of a short training in another folder, on this text."""
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "harvest").exists():
            (work / "harvest").symlink_to(self.work / "harvest")
        short: dict[str, Any] = {
            "model": str(self.checkpoint), "work": str(work), "depth": 3, "steps": 10, "batch_rows": 4, "window": 24,
            "dtype": "float32", "held_out": 0.3, "warm_up_steps": 1, "learning_rate": 3e-3, "save_every": 4,
            "evaluate_every": 100, "expert_group_size": 2,
        }  # fmt: skip
        return TrainingSettings(**{**short, **changes})


def start_llm(checkpoint: Path, folder: Path) -> LLM:
    return LLM(str(checkpoint), harvest_path=str(folder), enable_prefix_caching=False, kv_cache_memory_bytes=16 << 20)


def harvest_small_model(folder: Path) -> Harvested:
    changes = {
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    }
    config = random_config(6, vocab_size=97, torch_dtype="float32", n_shared_experts=1, **changes)
    write_checkpoint(folder / "model", config, seed=6)
    prompts = [Prompt("text", tuple(random_tokens(16 + n % 5, 97, seed=n))) for n in range(16)]
    tasks = plan_tasks(prompts, (0.0, 1.0), seed=0)
    work = folder / "work"
    run_harvest(
        lambda: start_llm(folder / "model", work / "harvest"), tasks, work / "harvest", MAX_TOKENS, lambda n: None
    )
    return Harvested(folder / "model", config, prompts, work)


def load_module(path: Path, group_size: int) -> tuple[TrainableMtp, Source]:
    """The checkpoint's MTP module as training has it, in float32."""
    config = ModelConfig.load(path)
    source = Source(config, Checkpoint(path), torch.float32)
    module = TrainableMtp(config, group_size)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(source.parameter(module, name, tuple(parameter.shape)))
    if module.is_routed:
        module.set_router_bias(source.router_bias())
    return module, source
