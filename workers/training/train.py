"""Trains scout and its MTP module together: `python -m outrider.workers.training.train --data DIR --work DIR`.

The schedule follows the clock, not a count of steps: `--minutes` of training end on time on a busy machine too, with
the learning rate decayed. `--resume` continues from the last checkpoint below --work with the time that is left;
`--start DIR` begins a new run with an exported checkpoint's weights, which a short warm-up gives optimizers to.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from outrider.workers.training.dataset import Windows
from outrider.workers.training.export import load_export
from outrider.workers.training.muon import Muon
from outrider.workers.training.network import Losses, Network
from outrider.workers.training.shape import ModelSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train; the defaults made the bundled model."""

    muon_lr: float = 0.014
    adam_lr: float = 4e-3
    embedding_lr: float = 0.05
    muon_warmup_steps: int = 100
    adam_warmup_steps: int = 5
    constant_until: float = 0.3
    final_factor: float = 0.05
    mtp_weight: float = 0.3
    bias_step: float = 0.01
    batch_tokens: int = 6144
    window: int = 256
    long_window: int = 512
    long_from: float = 0.6
    seed: int = 0

    def factor(self, progress: float) -> float:
        """The decay of every learning rate: none at first, then linear in the time used (0..1)."""
        decayed = max(0.0, progress - self.constant_until) / (1 - self.constant_until)
        return 1 - (1 - self.final_factor) * min(1.0, decayed)

    def learning_rates(self, step: int, progress: float) -> tuple[float, float, float]:
        """Rates of Muon, AdamW and the embedding.

        Muon warms up last. Otherwise all layers would first learn the same thing: token frequencies.
        """
        muon, adam = (min(1.0, (step + 1) / steps) for steps in (self.muon_warmup_steps, self.adam_warmup_steps))
        factor = self.factor(progress)
        return self.muon_lr * muon * factor, self.adam_lr * adam * factor, self.embedding_lr * adam * factor

    def window_at(self, step: int, progress: float) -> int:
        """Tokens per window: short at first; later every second batch is long, to train later positions."""
        return self.long_window if progress >= self.long_from and step % 2 else self.window


# For weights that were trained before: lower rates, since those ended low; longer windows; other text first.
CONTINUED = Recipe(
    muon_lr=0.01,
    adam_lr=2e-3,
    embedding_lr=0.02,
    adam_warmup_steps=100,
    constant_until=0.1,
    long_window=1024,
    seed=1,
)


class Trainer:
    """Owns the network, its optimizers and the clock: everything that a checkpoint must contain."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self.network = network
        self.recipe = recipe
        self.step = 0
        self.elapsed_s = 0.0
        matrices, rest = split_parameters(network)
        embedding = [network.model.embed_tokens.weight]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=recipe.muon_lr),
            torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
            torch.optim.AdamW(embedding, lr=recipe.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]

    def advance(self, tokens: torch.Tensor, progress: float) -> Losses:
        """One update on a batch of windows."""
        losses: Losses = self.network(tokens)
        (losses.main + self.recipe.mtp_weight * losses.mtp).backward()
        rates = self.recipe.learning_rates(self.step, progress)
        for optimizer, lr in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        balance(self.network, losses.loads, self.recipe.bias_step * self.recipe.factor(progress))
        self.step += 1
        return losses

    def save(self, path: Path) -> None:
        """Writes a checkpoint atomically."""
        state = {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Continues exactly where `save` was called."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def split_parameters(network: Network) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Matrices for Muon; head, routers and norms for AdamW. The embedding is in neither: it has its own rate."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in network.named_parameters():
        table = "lm_head" in name or "mlp.gate.weight" in name
        if "embed_tokens" not in name:
            (rest if table or parameter.dim() < 2 else matrices).append(parameter)
    return matrices, rest


@torch.no_grad()
def balance(network: Network, loads: list[torch.Tensor], step: float) -> None:
    """Moves every router's bias towards the experts with less than their share (arXiv 2408.15664)."""
    for router, load in zip(network.routers(), loads, strict=True):
        router.e_score_correction_bias += step * torch.sign(load.mean() - load)


def held_out_losses(network: Network, data: Path, recipe: Recipe, batches: int = 2) -> dict[str, float]:
    """Losses on the first held-out batches of each kind, computed as in training: a quick estimate."""
    found = {}
    for kind in ("code", "prose"):
        windows = Windows(data, "heldout", seed=1, shares={kind: 1.0})
        rows = recipe.batch_tokens // recipe.window
        losses = [network(windows.batch(i, rows, recipe.window + 2)) for i in range(batches)]
        found[f"heldout_{kind}"] = sum(loss.main.item() for loss in losses) / batches
        found[f"heldout_{kind}_mtp"] = sum(loss.mtp.item() for loss in losses) / batches
    return found


def run(trainer: Trainer, data: Path, work: Path, minutes: float) -> None:
    """Trains until the time is over. Writes a checkpoint and a held-out loss every few minutes, metrics every step."""
    recipe, windows = trainer.recipe, Windows(data, "train", trainer.recipe.seed)
    checkpoint, last = work / "checkpoint.pt", time.monotonic()
    next_save_s = trainer.elapsed_s + 300
    with (work / "metrics.jsonl").open("a", buffering=1) as metrics:
        while trainer.elapsed_s < minutes * 60:
            progress = trainer.elapsed_s / (minutes * 60)
            length = recipe.window_at(trainer.step, progress)
            losses = trainer.advance(windows.batch(trainer.step, recipe.batch_tokens // length, length + 2), progress)
            now = time.monotonic()
            row = {"step": trainer.step, "s": round(now - last, 3), "window": length, "elapsed_s": trainer.elapsed_s}
            trainer.elapsed_s, last = trainer.elapsed_s + now - last, now
            row |= {"main": losses.main.item(), "mtp": losses.mtp.item(), "imbalance": imbalance(losses.loads)}
            if trainer.elapsed_s >= next_save_s:
                trainer.save(checkpoint)
                row |= held_out_losses(trainer.network, data, recipe)
                next_save_s = trainer.elapsed_s + 300
            metrics.write(json.dumps(row) + "\n")
    trainer.save(checkpoint)


def imbalance(loads: list[torch.Tensor]) -> float:
    """The highest expert load over the mean, averaged over layers."""
    return sum((load.max() / load.mean()).item() for load in loads) / len(loads)


def main() -> None:
    """Trains below --work, for --minutes in all."""
    parser = argparse.ArgumentParser(description="Train the demo model and its MTP module.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, metavar="DIR", help="an exported checkpoint of this shape")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(Recipe().seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.start:
        trainer = Trainer(load_export(arguments.start, ModelSizes(), torch.bfloat16), CONTINUED)
    else:
        trainer = Trainer(Network(ModelSizes(), torch.bfloat16), Recipe())
    if arguments.resume:
        trainer.load(arguments.work / "checkpoint.pt")
    trainer.network.compile_layers()
    run(trainer, arguments.data, arguments.work, arguments.minutes)


if __name__ == "__main__":
    main()
