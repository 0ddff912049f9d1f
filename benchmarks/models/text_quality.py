"""The demo model's text: bits a byte beside simpler models', code that parses, text that does not go round in circles.

    python benchmarks/models/text_quality.py --corpus build/corpus --data build/data [--model scout] [--metrics FILE]

--corpus and --data are what `python -m outrider.workers.training.corpus` and `.dataset` made. Held-out text only: the
losses are those over its token streams; n-grams of up to five bytes learn from the first --learn MB of each kind's
training text. Completions are asked of the engine. Code can fail to parse only because no statement ends within a
completion's tokens; so the files' own text is judged by the same rule, and completions are judged again where that
text passes. --metrics, of a training run, is drawn into --plot.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.results import save
from benchmarks.models.byte_models import ByteNgrams, bits_of_nats, gzip_bits, xz_bits
from benchmarks.models.completions import loops, parses, what_follows
from benchmarks.reporting.svg import line_plot
from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.training.evaluate import held_out_loss, tokens_per_byte
from outrider.workers.training.export import load_export
from outrider.workers.training.prompts import choose
from outrider.workers.training.shape import ModelSizes

KINDS = ("code", "prose")
SAMPLED, GREEDY = 64, 128  # tokens of a completion
PENALTY = 0.6  # that keeps most greedy text out of loops
PARSES, PARSES_TOO = "code that parses", "code that parses where the file's own does"
POINTS = 24  # of a plot
STYLE = """<style>
svg { font: 13px sans-serif; background: #fff; fill: #222 } .small { font-size: 11px } .title { font-weight: bold }
.line { fill: none; stroke-width: 2 } .grid { stroke: #ddd } .s0 { stroke: #1769aa } .s1 { stroke: #b3541e }
rect.s0, circle.s0 { fill: #1769aa } rect.s1, circle.s1 { fill: #b3541e }
</style>"""


def documents(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def text_of(path: Path, kind: str, most: float = float("inf")) -> bytes:
    """The first `most` bytes of a kind's documents, one after another."""
    parts, size = [], 0
    for document in documents(path):
        if document["kind"] == kind and size < most:
            parts.append(document["text"].encode())
            size += len(parts[-1])
    return b"\n".join(parts)


def simpler_models(corpus: Path, learn_mb: float) -> dict[str, dict[str, float]]:
    """Bits a byte of held-out text, by kind."""
    found = {}
    for kind in KINDS:
        held_out = text_of(corpus / "heldout.jsonl", kind)
        ngrams = ByteNgrams(text_of(corpus / "train.jsonl", kind, learn_mb * 1e6))
        found[kind] = {"5-grams": ngrams.bits(held_out), "xz": xz_bits(held_out), "gzip": gzip_bits(held_out)}
    return found


def bits_a_byte(model: Path, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """Of held-out text, by kind."""
    network = load_export(model, ModelSizes())
    found = {}
    for kind in KINDS:
        stream = torch.from_numpy(np.load(data / f"heldout.{kind}.npy").astype(np.int64))
        found[kind] = bits_of_nats(held_out_loss(network, stream)[0], tokens_per_byte(tokenizer, stream))
    return found


def share(values: Iterable[bool]) -> float:
    found = list(values)
    return sum(found) / len(found)


def own_code_parses(documents: Sequence[dict[str, Any]], tokenizer: Tokenizer, prompts: Sequence[str]) -> list[bool]:
    """Whether each prompt parses with the SAMPLED tokens that follow it in its file."""
    files = [document["text"] for document in documents if document["kind"] == "code"]
    found = []
    for prompt in prompts:
        following = tokenizer.encode(what_follows(prompt, files), add_special_tokens=False)
        found.append(parses(prompt, tokenizer.decode(following.ids[:SAMPLED])))
    return found


def prompts_by_use(documents: list[dict[str, Any]], tokenizer: Tokenizer, count: int) -> dict[str, list[str]]:
    """`count` held-out prompts of each kind, and `count` of code whose own text parses."""
    prompts = {kind: choose(documents, tokenizer, kind, count) for kind in KINDS}
    more = choose(documents, tokenizer, "code", 5 * count)
    passing = zip(more, own_code_parses(documents, tokenizer, more), strict=True)
    return prompts | {PARSES_TOO: [prompt for prompt, passes in passing if passes][:count]}


def text_figures(llm: LLM, prompts: dict[str, list[str]]) -> dict[str, float]:
    """Shares of completions: sampled code that parses; greedy text that does not end in a loop, and penalised too."""
    sampling = SamplingParams(temperature=0.8, seed=0, max_tokens=SAMPLED)
    greedy = SamplingParams(temperature=0, max_tokens=GREEDY, ignore_eos=True)
    found = {}
    for name, use in ((PARSES, "code"), (PARSES_TOO, PARSES_TOO)):
        code = zip(prompts[use], llm.generate(prompts[use], sampling), strict=True)
        found[name] = share(parses(prompt, out.outputs[0].text) for prompt, out in code)
    for how, params in (("", greedy), (f", frequency_penalty {PENALTY}", replace(greedy, frequency_penalty=PENALTY))):
        for kind in KINDS:
            outs = llm.generate(prompts[kind], params)
            found[f"greedy {kind} without a loop{how}"] = share(not loops(out.outputs[0].token_ids) for out in outs)
    return found


def training_plot(metrics: Sequence[dict[str, float]]) -> str:
    """Losses over a training run, as an SVG file."""
    cut = [metrics[i * len(metrics) // POINTS : (i + 1) * len(metrics) // POINTS] for i in range(POINTS)]
    series = {
        name: [sum(row[key] for row in part) / len(part) for part in cut]
        for name, key in (("the model's next token", "main"), ("its MTP module's", "mtp"))
    }
    minutes = [f"{part[-1]['elapsed_s'] / 60:.0f}" if i % 3 == 2 else "" for i, part in enumerate(cut)]
    drawn = line_plot("Loss on training text", minutes, series, x_name="minutes", y_name="nats a token")
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace(">", ">" + STYLE, 1) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=["scout"], help="of scout's shape, to be set side by side")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument("--learn", type=float, default=32, help="MB of training text that the n-grams learn from")
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a training run")
    parser.add_argument("--plot", type=Path, help="where to draw it")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    held_out = list(documents(args.corpus / "heldout.jsonl"))
    figures: dict[str, Any] = {"simpler": simpler_models(args.corpus, args.learn), "models": {}}
    print(json.dumps(figures["simpler"], indent=1), flush=True)
    for name in args.model:
        path = resolve_model(name)
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        prompts = prompts_by_use(held_out, tokenizer, args.prompts)
        figures["own text"] = {PARSES: share(own_code_parses(held_out, tokenizer, prompts["code"]))}
        with LLM(name) as llm:
            row = {"bits a byte": bits_a_byte(path, tokenizer, args.data), **text_figures(llm, prompts)}
        figures["models"][name] = row | {"prompts": {kind: len(texts) for kind, texts in prompts.items()}}
        print(name, json.dumps(figures["models"][name], indent=1), flush=True)
    if args.metrics and args.plot:
        args.plot.write_text(training_plot([json.loads(line) for line in args.metrics.read_text().splitlines()]))
    print("written to", save("scout", f"benchmarks/models/text_quality.py {shlex.join(sys.argv[1:])}", figures))


if __name__ == "__main__":
    main()
