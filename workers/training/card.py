"""Writes the model card of an exported model: `python -m outrider.workers.training.card`.

Everything in it comes from the corpus manifest and the evaluation's JSON; nothing is measured here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from outrider.workers.training.shape import Shape

_HEAD = """---
license: apache-2.0
library_name: transformers
tags: [deepseek_v3, mtp, speculative-decoding]
---
# scout

The demo model of outrider: a small language model of DeepSeek-V3's architecture with one Multi-Token-Prediction (MTP)
module, trained from nothing by this repository's own scripts. It exists to exercise real weights, real routing and real
drafts on any machine. It has read a little Python and some manuals; it knows no facts and follows no instructions.

- {layers} layers (the first dense), hidden {hidden}, {heads} heads, {experts} routed experts (top {top}) and one
  shared, latent cache {latent} + {rope} values a token, vocabulary {vocabulary}, {positions} positions.
- Trained on windows of 256 and 512 tokens: text further on than about 500 positions degrades.
- The chat template follows DeepSeek-R1's; begin-of-sentence is added to every prompt.
- The MTP module was first trained with the main model, then alone for recursion: four steps, each fed its own state
  after `shared_head.norm`.
"""

_AGAIN = """
## Train it again

On two CPU cores with AVX-512 and bfloat16 matrix units, about two hours:

```
run() { python -m outrider.workers.training."$@"; }
run corpus --out build/corpus
run tokenizer --corpus build/corpus --out build/tokenizer
run dataset --corpus build/corpus --tokenizer build/tokenizer --out build/data
run train --data build/data --work build/run --minutes 68
run recursion --data build/data --work build/run --minutes 20
run export --work build/run --tokenizer build/tokenizer --out models/scout
run prompts --corpus build/corpus --tokenizer build/tokenizer --out cluster/demo_prompts.json
run evaluate --model models/scout --data build/data --prompts cluster/demo_prompts.json --json build/evaluation.json
run card --manifest build/corpus/manifest.json --evaluation build/evaluation.json --out models/scout/README.md
```
"""

_RUN = """
## This run (2026-11-24)

1,249 joint steps of 6,144 tokens (7.7 M of the corpus's 40.7 M tokens) in 68 minutes, then 655 recursion steps in 14,
on two shared cores of an Intel Xeon with AMX. It differs from the defaults in three ways: the first 195 steps used a
Muon rate of 0.02, the first 109 a router bias step of 0.003, and the corpus was cleaned by a version that lost the mark
of list items that hold a paragraph. It is undertrained: the loss was still falling.
"""

_DATA = """
## Data

{total} MB of text from package registries: Python source, the documentation of Debian packages, and questions and
answers made from docstrings and headings of the same files. About 1 % of the files, whole, were held out.

"""

_ACCEPTANCE = """
## Acceptance of drafts by position

Along the model's own text, each position given those before it; at 0.8 target and drafter draw with the same noise.
Greedy text of a small model loops, which flatters acceptance.

"""


def introduction(shape: Shape) -> str:
    """What the model is."""
    return _HEAD.format(
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        experts=shape.n_routed_experts,
        top=shape.num_experts_per_tok,
        latent=shape.kv_lora_rank,
        rope=shape.qk_rope_head_dim,
        vocabulary=shape.vocab_size,
        positions=shape.max_position_embeddings,
    )


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def data_section(manifest: dict[str, dict[str, Any]]) -> str:
    """The sources, their versions, licences and sizes."""
    header = ["package", "version", "licence", "files", "MB"]
    rows = [
        [name, row["version"], row["licence"], str(row["files"]), f"{row['bytes'] / 1e6:.1f}"]
        for name, row in sorted(manifest.items())
    ]
    total = sum(row["bytes"] for row in manifest.values()) / 1e6
    return _DATA.format(total=f"{total:.0f}") + markdown_table(header, rows)


def results_section(evaluation: dict[str, dict[str, Any]]) -> str:
    """Held-out losses, and acceptance per position."""
    names = ("nats_per_token", "bits_per_byte", "mtp_nats_per_token")
    losses = [[kind, *(f"{row[name]:.2f}" for name in names)] for kind, row in evaluation.items()]
    drafts = [
        [kind, temperature, *(f"{value:.2f}" for value in row[f"acceptance_given_earlier_t{temperature}"])]
        for kind, row in evaluation.items()
        for temperature in ("0.0", "0.8")
    ]
    positions = [str(position + 1) for position in range(len(drafts[0]) - 2)]
    return (
        "\n## Held-out loss\n\n"
        + markdown_table(["text", "nats a token", "bits a byte", "MTP, nats a token"], losses)
        + _ACCEPTANCE
        + markdown_table(["text", "temperature", *positions], drafts)
    )


def main() -> None:
    """Writes the card to --out."""
    parser = argparse.ArgumentParser(description="Write the demo model's card.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    manifest = json.loads(arguments.manifest.read_text())
    evaluation = json.loads(arguments.evaluation.read_text())
    text = introduction(Shape()) + _RUN + data_section(manifest) + results_section(evaluation) + _AGAIN
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
