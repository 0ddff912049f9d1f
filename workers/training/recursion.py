"""Trains the MTP module to draft several tokens by recursion: `python -m outrider.workers.training.recursion`.

The trunk is frozen. From every position of a text the module is unrolled `depth` steps: it is fed the next token and
its own state **after** shared_head.norm, sees the true pairs' cache up to its start and its own entries after, as it
will when serving. Each step's distribution is drawn to the main model's own at that position. Half of the text is the
model's own, since that is what drafts are made along.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from outrider.workers.training.dataset import Windows
from outrider.workers.training.muon import Muon
from outrider.workers.training.network import Network
from outrider.workers.training.sampling import Noise, continuations
from outrider.workers.training.shape import Shape
from outrider.workers.training.unrolled import attend_unrolled

DEPTH, DECAY = 4, 0.8
ROWS, WINDOW = 16, 256


def unrolled_states(network: Network, states: Tensor, tokens: Tensor, depth: int) -> list[Tensor]:
    """The module's states after steps 1..depth from every start i: entry j-1 predicts the token at i + j + 1.

    `states` [batch, n, hidden] are the main model's after its final norm; `tokens` [batch, n + depth] the text:
    step j is fed its token at i + j.
    """
    module, length = network.mtp, states.shape[1]
    found: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(1, depth + 1):
        x = module.join(network.model.embed_tokens(tokens[:, step : step + length]), states)
        rotary = network.rotary(step - 1, step - 1 + length)
        query, key, value = module.self_attn.project(module.input_layernorm(x), rotary)
        keys.append(key)
        values.append(value)
        attended = attend_unrolled(query, keys, values, module.self_attn.scale)
        x, _ = module.feed_forward(x + module.self_attn.combine(attended))
        states = module.shared_head(x)
        found.append(states)
    return found


def divergence(network: Network, drafts: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL divergence, nats, of the drafts' distributions from the main model's (log probabilities) there."""
    student = network.logits(drafts).log_softmax(-1)
    return F.kl_div(student.flatten(0, 1), teacher.flatten(0, 1), reduction="batchmean", log_target=True)


Measure = Callable[[Network, Tensor, Tensor], Tensor]


def recursion_losses(
    network: Network, tokens: Tensor, depth: int = DEPTH, measure: Measure = divergence
) -> list[Tensor]:
    """The divergence at each step over tokens [batch, n + depth]. Only the MTP module sees a gradient to use."""
    length = tokens.shape[1] - depth
    with torch.no_grad():
        states, _ = network.hidden_states(tokens)
        teacher = network.logits(states).log_softmax(-1)
    unrolled = unrolled_states(network, states[:, :length], tokens, depth)
    return [measure(network, drafts, teacher[:, j : j + length]) for j, drafts in enumerate(unrolled, start=1)]


def own_text(network: Network, windows: Windows, batches: int, rows: int = 256) -> Tensor:
    """Samples of the network's own after prompts from the corpus, in equal parts greedy, at T = 0.8 and at T = 1."""
    found = []
    for number in range(batches):
        prompts = windows.batch(1_000_000 + number, rows, 32)
        noise = Noise(number, rows, network.shape.vocab_size)
        found.append(continuations(network, prompts, WINDOW + DEPTH - 32, (0.8, 0.0, 1.0)[number % 3], noise))
    return torch.cat(found)


class DrafterTrainer:
    """Updates the MTP module alone; embedding, head and trunk stay as they are."""

    def __init__(self, network: Network, muon_lr: float = 0.01, adam_lr: float = 5e-4) -> None:
        self.network = network
        network.requires_grad_(False)
        network.mtp.requires_grad_(True)
        matrices = [p for name, p in network.mtp.named_parameters() if p.dim() >= 2 and "mlp.gate" not in name]
        rest = [p for name, p in network.mtp.named_parameters() if p.dim() < 2 or "mlp.gate" in name]
        self._optimizers = (Muon(matrices, lr=muon_lr), torch.optim.AdamW(rest, lr=adam_lr, weight_decay=0.0))
        self._base_lrs = (muon_lr, adam_lr)

    def advance(self, tokens: Tensor, factor: float, measure: Measure = divergence) -> list[float]:
        """One update at `factor` times the learning rates; the divergence of each step before it."""
        losses = recursion_losses(self.network, tokens, measure=measure)
        total = sum((DECAY**j * loss for j, loss in enumerate(losses)), torch.zeros(()))
        total.backward()  # type: ignore[no-untyped-call]  # torch's
        for optimizer, lr in zip(self._optimizers, self._base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        return [loss.item() for loss in losses]


def run(trainer: DrafterTrainer, data: Path, work: Path, minutes: float, own_batches: int) -> None:
    """Samples the network's own text, then trains on it and on the corpus in turn until the clock says so."""
    start, step = time.monotonic(), 0
    windows = Windows(data, "train", seed=7)
    own = own_text(trainer.network, windows, own_batches)
    measure = torch.compile(divergence, dynamic=False)
    with (work / "recursion.jsonl").open("a", buffering=1) as metrics:
        while (progress := (time.monotonic() - start) / (minutes * 60)) < 1:
            corpus = windows.batch(step, ROWS, WINDOW + DEPTH)
            picked = torch.randint(len(own), (ROWS,), generator=torch.Generator().manual_seed(step))
            factor = min(1.0, (step + 1) / 20) * (1 - 0.95 * max(0.0, (progress - 0.3) / 0.7))
            losses = trainer.advance(own[picked] if step % 2 else corpus, factor, measure)
            step += 1
            metrics.write(
                json.dumps({"step": step, "s": time.monotonic() - start, "own": step % 2 == 0, "kl": losses}) + "\n"
            )
    torch.save({"network": trainer.network.state_dict()}, work / "recursion.pt")


def main() -> None:
    """Starts from checkpoint.pt below --work, ends with recursion.pt beside it."""
    parser = argparse.ArgumentParser(description="Train the demo model's MTP module for recursion.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--own-batches", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = Network(Shape(), torch.bfloat16)
    network.load_state_dict(torch.load(arguments.work / "checkpoint.pt", weights_only=True)["network"])
    network.compile_layers()
    run(DrafterTrainer(network), arguments.data, arguments.work, arguments.minutes, arguments.own_batches)


if __name__ == "__main__":
    main()
