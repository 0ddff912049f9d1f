"""Writes the model card of an exported model: `python -m outrider.workers.training.card`.

All content comes from files: the corpus manifest, results of evaluate.py before and after distilling, results of
benchmarks/models/text_quality.py, and a short description of the run. Nothing is measured here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from outrider.workers.training.shape import ModelSizes

Evaluation = dict[str, dict[str, Any]]  # by kind of text

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
  shared, latents of {latent} + {rope} values a token, vocabulary {vocabulary}, {positions} positions.
- Trained on windows of 256 to 1,024 tokens: text further on degrades.
- The chat template follows DeepSeek-R1's; begin-of-sentence is added to every prompt.
- The MTP module was first trained with the main model, then distilled by `outrider distill`: four drafts deep, along
  the model's own text.
"""

_AGAIN = """
## Train it again

On two CPU cores with AVX-512 and bfloat16 matrix units, some three hours; `train --start models/scout` goes on from
these weights instead.

```
run() { python -m outrider.workers.training."$@"; }
run corpus --out build/corpus
run tokenizer --corpus build/corpus --out build/tokenizer
run dataset --corpus build/corpus --tokenizer build/tokenizer --out build/data
run train --data build/data --work build/run --minutes 150
run export --work build/run --tokenizer build/tokenizer --out build/joint
run prompts --corpus build/corpus --tokenizer build/tokenizer --split train --count 1400 --out build/prompts.json
outrider distill --model build/joint --prompts build/prompts.json --work build/distill --out models/scout
run prompts --corpus build/corpus --tokenizer build/tokenizer --out cluster/client/prompts.json
for model in build/joint models/scout; do
  run evaluate --model $model --data build/data --prompts cluster/client/prompts.json --json $model/evaluation.json
done
python benchmarks/models/text_quality.py --corpus build/corpus --data build/data --metrics build/run/metrics.jsonl \\
  --plot models/scout/training.svg
run card --manifest build/corpus/manifest.json --before build/joint/evaluation.json --evaluation \\
  models/scout/evaluation.json --text benchmarks/results/scout.json --run build/run.md --out models/scout/README.md
```
"""

_DATA = """
## Data

{total} MB of text from package registries: Python source, the documentation of Debian packages, and questions and
answers made from docstrings and headings of the same files. About 1 % of the files, whole, were held out.

"""

_TEXT = """
## Its text

Bits a byte of held-out files, beside n-grams of up to five bytes and compressors; completions of held-out code (64
tokens at T=0.8, cut at the last whole statement) that parse, and greedy completions (128 tokens) that do not end in a
loop (eight tokens three times in the last 64). Where no statement ends within its tokens, a completion does not parse.
The files' own next 64 tokens are judged by the same rule; the second column asks only where those pass.

"""

_ACCEPTANCE = """
## Acceptance of drafts by position

Along the model's own text, each position given those before it; at 0.8 target and drafter draw with the same noise.
Greedy text of a small model loops, which flatters acceptance.

"""


def introduction(shape: ModelSizes) -> str:
    """The card's introduction."""
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


def acceptance_table(before: Evaluation, after: Evaluation) -> str:
    """Acceptance per position by kind of text and temperature, before distilling and after."""
    rows = [
        [
            kind,
            temperature,
            drafter,
            *(f"{value:.2f}" for value in row[kind][f"acceptance_given_earlier_t{temperature}"]),
        ]
        for kind in after
        for temperature in ("0.0", "0.8")
        for drafter, row in (("joint training", before), ("distilled", after))
    ]
    positions = [str(position + 1) for position in range(len(rows[0]) - 3)]
    return markdown_table(["text", "temperature", "drafter", *positions], rows)


def results_section(before: Evaluation, after: Evaluation) -> str:
    """Held-out losses, and acceptance per position."""
    names = ("nats_per_token", "bits_per_byte", "mtp_nats_per_token")
    losses = [[kind, *(f"{row[name]:.2f}" for name in names)] for kind, row in after.items()]
    return (
        "\n## Held-out loss\n\n![Loss on training text](training.svg)\n\n"
        + markdown_table(["text", "nats a token", "bits a byte", "MTP, nats a token"], losses)
        + _ACCEPTANCE
        + acceptance_table(before, after)
    )


def text_section(found: dict[str, Any]) -> str:
    """Measures of the generated text, one row for each model of benchmarks/models/text_quality.py."""
    models, simpler = found["models"], found["simpler"]
    by_model = {name: model["bits a byte"] for name, model in models.items()}
    by_model |= {name: {kind: row[name] for kind, row in simpler.items()} for name in simpler["code"]}
    bits = [[name, f"{row['code']:.2f}", f"{row['prose']:.2f}"] for name, row in by_model.items()]
    shares = [name for name in next(iter(models.values())) if name not in ("bits a byte", "prompts")]
    rows = {**models, "the files themselves": found["own text"]}
    texts = [[name, *(f"{row[share]:.0%}" if share in row else "" for share in shares)] for name, row in rows.items()]
    return _TEXT + markdown_table(["model", "code", "prose"], bits) + "\n" + markdown_table(["model", *shares], texts)


def main() -> None:
    """Writes the card to --out."""
    parser = argparse.ArgumentParser(description="Write the demo model's card.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True, help="evaluate.py's JSON before distilling")
    parser.add_argument("--evaluation", type=Path, required=True, help="and after")
    parser.add_argument("--text", type=Path, required=True, help="benchmarks/results/scout.json")
    parser.add_argument("--run", type=Path, required=True, help="Markdown on this run: when, where, how long")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    manifest, before, after, text = (
        json.loads(path.read_text())
        for path in (arguments.manifest, arguments.before, arguments.evaluation, arguments.text)
    )
    run = f"\n## This run\n\n{arguments.run.read_text(encoding='utf-8').strip()}\n"
    parts = (
        introduction(ModelSizes()),
        run,
        data_section(manifest),
        results_section(before, after),
        text_section(text),
        _AGAIN,
    )
    arguments.out.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
