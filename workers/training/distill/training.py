"""The training loop of one rank: batch, loss, update; at intervals a held-out evaluation and a checkpoint."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from outrider.workers.config import resolve_model
from outrider.workers.model.weights import Checkpoint
from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.training.distill.batches import Batches, TrainingBatch
from outrider.workers.training.distill.drafting import Measured, measure, weighted
from outrider.workers.training.distill.names import Source, trained_tensors
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.training.distill.zero import ZeroTrainer
from outrider.workers.types.model.model_config import ModelConfig

_HELD_OUT_WINDOWS = 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Report = Callable[..., None]


def train(settings: TrainingSettings, device: torch.device, report: Report) -> None:
    """Trains from the newest checkpoint to the last step, and writes the trained tensors.

    Call it on every rank of an initialised process group. `report` gets "step" and "steps" with each step's measures.
    """
    settings.check_world(dist.get_world_size())
    path = resolve_model(settings.model)
    config = ModelConfig.load(path)
    source = Source(config, Checkpoint(path), _DTYPES[settings.dtype])
    trainer = ZeroTrainer(settings, config, source, device)
    run = _Run(settings, trainer, Harvest(settings.harvest_folder), report)
    step = trainer.resume()
    report(step=step, steps=settings.steps, resumed=step > 0)
    while step < settings.steps:
        run.advance(step)
        step += 1
        if step % settings.save_every == 0 and step < settings.steps:
            trainer.save(step)
    run.write_trained()


class _Run:
    """A rank's share of the data, and its progress reports."""

    def __init__(self, settings: TrainingSettings, trainer: ZeroTrainer, harvest: Harvest, report: Report) -> None:
        self._settings, self._trainer, self._report = settings, trainer, report
        self._seen, held_out = (self._batches(harvest, half) for half in (False, True))
        self._held_out = self._my_windows(held_out)

    def advance(self, step: int) -> None:
        """Runs step number `step`, in `accumulate` micro-batches, on all ranks."""
        settings = self._settings
        if step % settings.evaluate_every == 0:
            self._look(step)
        batch = self._seen.batch(step, settings.batch_rows, dist.get_rank(), self._trainer.world_size)
        starts = float(self._trainer.summed(batch.counted.sum()[None].float().to(self._trainer.device)))
        totals = torch.zeros(settings.depth, 3)
        for part in _parts(batch, settings.accumulate):
            totals += self._descend(_on(part, self._trainer.device), starts, settings.learning_rate_at(step))
        self._say(step=step + 1, steps=settings.steps, train=Measured.of(totals, starts))

    def write_trained(self) -> None:
        """The last evaluation; then rank 0 writes the trained tensors."""
        settings = self._settings
        self._look(settings.steps)
        tensors = dict(trained_tensors(self._trainer.module, settings.trained, self._trainer.whole))
        if dist.get_rank() == 0:
            partial = settings.trained_file.with_suffix(".partial")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            partial.replace(settings.trained_file)
        dist.barrier()

    def _descend(self, part: TrainingBatch, starts: float, learning_rate: float) -> Tensor:
        """Runs one micro-batch, forward and backward; returns its sums over all ranks, [depth, 3].

        The gradient is that of the mean over the step's `starts`. DeepSpeed averages over ranks and micro-batches.
        """
        sums = self._trainer.engine(part.token_ids, part.hidden, part.counted)
        share = self._trainer.world_size * self._settings.accumulate / max(starts, 1.0)
        self._trainer.descend(weighted(sums, self._settings.decay) * share, learning_rate)
        return self._trainer.summed(sums).cpu()

    def _look(self, step: int) -> None:
        """Evaluates on held-out text."""
        engine = self._trainer.engine
        engine.eval()
        batches = [_on(batch, self._trainer.device) for batch in self._held_out]
        measured = measure(engine, batches, self._trainer.summed)
        engine.train()
        self._say(step=step, steps=self._settings.steps, held_out=measured)

    def _say(self, *, step: int, steps: int, **measured: Measured) -> None:
        row: dict[str, Any] = {name: dataclasses.asdict(value) for name, value in measured.items()}
        self._report(step=step, steps=steps, **row)
        if dist.get_rank() == 0:
            with (Path(self._settings.work) / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"step": step, **row}) + "\n")

    def _batches(self, harvest: Harvest, held_out: bool) -> Batches:
        settings = self._settings
        return Batches(
            harvest,
            window=settings.window,
            depth=settings.depth,
            held_out=held_out,
            share=settings.held_out,
            seed=settings.seed,
        )

    def _my_windows(self, held_out: Batches) -> list[TrainingBatch]:
        """This rank's share of the first held-out windows, equally many batches on every rank."""
        world, rows = self._trainer.world_size, max(1, self._settings.batch_rows // self._trainer.world_size)
        windows = min(_HELD_OUT_WINDOWS, len(held_out))
        mine = list(range(dist.get_rank(), windows, world))
        rounds = math.ceil(math.ceil(windows / world) / rows)
        empty = held_out.windows([0])
        none = TrainingBatch(empty.token_ids, empty.hidden, torch.zeros_like(empty.counted))
        batches = [
            held_out.windows(part) for first in range(0, len(mine), rows) if (part := mine[first : first + rows])
        ]
        return batches + [none] * (rounds - len(batches))


def _parts(batch: TrainingBatch, count: int) -> list[TrainingBatch]:
    columns = (batch.token_ids.chunk(count), batch.hidden.chunk(count), batch.counted.chunk(count))
    return [TrainingBatch(*part) for part in zip(*columns, strict=True)]


def _on(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    return TrainingBatch(batch.token_ids.to(device), batch.hidden.to(device), batch.counted.to(device))
