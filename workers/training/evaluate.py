"""Measures an exported model: `python -m outrider.workers.training.evaluate --model DIR --data DIR --prompts FILE`.

Held-out loss (nats a token, bits a byte), and per-position acceptance of the MTP module's drafts along the model's own
text: at temperature 0, and coupled (target and drafter draw with the same noise) at 0.8. Prints a table, writes JSON.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from outrider.workers.training.export import load_export
from outrider.workers.training.network import Network
from outrider.workers.training.sampling import Noise, choose, continuations
from outrider.workers.training.shape import ModelSizes
from outrider.workers.training.unrolled import attend_unrolled

DEPTH, PROMPT, NEW = 5, 56, 128
Report = dict[str, dict[str, object]]


@torch.no_grad()
def held_out_loss(network: Network, stream: Tensor, window: int = 512, most: int = 96) -> tuple[float, float]:
    """Mean loss of the main model and of its MTP module, nats a token, over windows spread evenly over `stream`."""
    windows = stream[: len(stream) // window * window].view(-1, window)
    windows = windows[:: max(1, len(windows) // most)]
    losses = [(network(batch), len(batch)) for batch in torch.split(windows, 16)]
    main = sum(loss.main.item() * rows for loss, rows in losses) / len(windows)
    return main, sum(loss.mtp.item() * rows for loss, rows in losses) / len(windows)


def tokens_per_byte(tokenizer: Tokenizer, stream: Tensor) -> float:
    """Tokens per byte of UTF-8 text."""
    return len(stream) / len(tokenizer.decode(stream.tolist(), skip_special_tokens=True).encode())


def unrolled_states(network: Network, states: Tensor, tokens: Tensor, depth: int) -> list[Tensor]:
    """The module's states after steps 1..depth from every start i: entry j-1 predicts the token at i + j + 1.

    `states` [batch, n, hidden] are the main model's after its final norm; `tokens` [batch, n + depth] the text:
    step j from start i is fed the token at i + j.
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


@torch.no_grad()
def matches(network: Network, prompts: Tensor, temperature: float, seed: int) -> Tensor:
    """Whether the draft of step j from each start equals the model's own token: bool [depth, rows, starts].

    Drafts are made from the true tokens before them, so entry j is only valid if all earlier entries are true.
    """
    noise = Noise(seed, len(prompts), network.shape.vocab_size)
    tokens = continuations(network, prompts, NEW + DEPTH + 1, temperature, noise)
    first = prompts.shape[1] - 1  # its state predicts the first new token
    states, _ = network.hidden_states(tokens[:, : first + NEW])
    found = torch.zeros(DEPTH, len(prompts), NEW, dtype=torch.bool)
    for j, drafts in enumerate(unrolled_states(network, states, tokens, DEPTH), start=1):
        logits = network.logits(drafts[:, first:])
        for start in range(NEW):
            position = first + start + j + 1
            drawn = choose(logits[:, start], temperature, noise.at(position))
            found[j - 1, :, start] = drawn == tokens[:, position]
    return found


def acceptance(found: Tensor) -> tuple[list[float], list[float]]:
    """Per position: the acceptance rate if all earlier drafts were accepted, and the rate at which all up to it are."""
    prefix = found.cumprod(0).flatten(1).float()  # [depth, starts]
    whole = prefix.mean(1).tolist()
    given = [whole[0], *(whole[j] / whole[j - 1] if whole[j - 1] else 0.0 for j in range(1, len(whole)))]
    return given, whole


def prompt_tokens(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The first PROMPT tokens of each text, begin-of-sentence included: int64 [texts, PROMPT]."""
    return torch.tensor([tokenizer.encode(text).ids[:PROMPT] for text in texts])


def evaluate(network: Network, tokenizer: Tokenizer, data: Path, prompts: dict[str, list[str]]) -> Report:
    """Everything this module measures, by kind of text."""
    report: Report = {}
    for kind in ("code", "prose"):
        stream = torch.from_numpy(np.load(data / f"heldout.{kind}.npy").astype(np.int64))
        main, mtp = held_out_loss(network, stream)
        row: dict[str, object] = {"nats_per_token": main, "mtp_nats_per_token": mtp}
        row["bits_per_byte"] = main * tokens_per_byte(tokenizer, stream) / math.log(2)
        for temperature in (0.0, 0.8):
            found = matches(network, prompt_tokens(tokenizer, prompts[kind]), temperature, seed=5)
            given, whole = acceptance(found)
            row[f"acceptance_given_earlier_t{temperature}"] = given
            row[f"acceptance_of_prefix_t{temperature}"] = whole
        report[kind] = row
    return report


def table(report: Report) -> str:
    """The report for a terminal."""
    lines = []
    for kind, row in report.items():
        for name, value in row.items():
            numbers = value if isinstance(value, list) else [value]
            lines.append(f"{kind:6} {name:32} " + " ".join(f"{number:.3f}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    """Evaluates --model and writes --json."""
    parser = argparse.ArgumentParser(description="Measure the demo model and its drafts.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = load_export(arguments.model, ModelSizes())
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    report = evaluate(network, tokenizer, arguments.data, json.loads(arguments.prompts.read_text(encoding="utf-8")))
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
