"""Records what a model's texts draft and what its rounds take on this machine, for simulations of draft depths.

    OMP_NUM_THREADS=1 python benchmarks/speculation/record_rounds.py [--model scout] [--only texts|rounds]

Writes recordings/MODEL-texts.npz (does not depend on the machine) and recordings/MODEL-rounds.npz. Rounds are timed by
the processor time of the engine's thread, so that other work on the machine hardly shows: hence one thread.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.prompts import prompts, windows
from benchmarks.common.results import machine
from benchmarks.common.timed_batches import BatchLLM
from benchmarks.speculation.recorders import ROUND_COLUMNS, RoundRecorder, TextRecorder, install
from outrider import SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer

RECORDINGS = Path(__file__).with_name("recordings")
PROMPT_TOKENS = 96
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
CONTEXTS = (64, 1024)


@dataclass(frozen=True, slots=True)
class Text:
    """A kind of text and how it is sampled."""

    kind: str
    temperature: float

    @property
    def name(self) -> str:
        return f"{self.kind}, T={self.temperature:g}"


TEXTS = (
    Text("code", 0.0), Text("code", 0.8), Text("prose", 0.0), Text("prose", 0.8), Text("chat", 0.8),
    Text("repetitive", 0.0), Text("adversarial", 2.0),
)  # fmt: skip


def kind_prompts(kind: str, tokenizer: Tokenizer, vocabulary: int, count: int) -> list[list[int]]:
    """Held-out prompts of a kind: "code" and "prose" as they are, "chat" through the chat template, "repetitive" (a
    few lines of code over and over), "adversarial" (tokens by chance)."""
    if kind == "adversarial":
        rng = random.Random(7)
        return [[rng.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(count)]
    texts = prompts("code" if kind == "repetitive" else "prose" if kind == "chat" else kind, count)
    if kind == "chat":
        asked = [[{"role": "user", "content": f"Explain this in other words:\n\n{text[:300]}"}] for text in texts]
        return [tokenizer.encode_chat(messages) for messages in asked]
    if kind == "repetitive":
        return [(tokenizer.encode(text)[:24] * PROMPT_TOKENS)[:PROMPT_TOKENS] for text in texts]
    return [tokenizer.encode(text)[:PROMPT_TOKENS] for text in texts]


def record_texts(llm: BatchLLM, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    assert llm.tokenizer is not None
    for number, text in enumerate(TEXTS):
        recorder = TextRecorder()
        install(llm, recorder)
        chosen = kind_prompts(text.kind, llm.tokenizer, llm._host.engine.info.vocab_size, args.prompts)
        params = [
            SamplingParams(temperature=text.temperature, max_tokens=args.tokens, ignore_eos=True, seed=100 * number + n)
            for n in range(len(chosen))
        ]
        llm.decode(chosen, params)
        recorded = recorder.recorded()
        accepted = np.concatenate([places[:, 0] for places in recorded])
        print(f"{text.name}: {len(accepted)} places, {accepted.mean():.2f} of the drafts accepted", flush=True)
        for n, places in enumerate(recorded):
            yield f"{text.name}/{n}", places


def record_rounds(llm: BatchLLM, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    assert llm.tokenizer is not None
    texts = [llm.tokenizer.encode(text) for text in prompts("code", 100)]
    for context in CONTEXTS:
        for batch in BATCHES:
            recorder = RoundRecorder(seed=batch)
            install(llm, recorder)
            params = SamplingParams(temperature=0.8, max_tokens=args.rounds, ignore_eos=True, seed=1)
            llm.decode(windows(texts, context, batch)[0], params)
            rounds = recorder.recorded()
            print(f"context {context}, batch {batch}: {len(rounds)} rounds", flush=True)
            yield f"context {context}/batch {batch}", rounds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--tokens", type=int, default=160, help="of each text")
    parser.add_argument("--prompts", type=int, default=12, help="of each kind of text")
    parser.add_argument("--rounds", type=int, default=260, help="tokens of output for each batch of recorded rounds")
    parser.add_argument("--only", choices=["texts", "rounds"])
    return parser.parse_args()


def main() -> None:
    args = arguments()
    RECORDINGS.mkdir(exist_ok=True)
    name = resolve_model(args.model).name
    with BatchLLM(args.model, enable_prefix_caching=False) as llm:
        if llm.tokenizer is None:
            sys.exit(f"{args.model} has no tokenizer to make prompts with")
        if args.only != "rounds":
            np.savez_compressed(RECORDINGS / f"{name}-texts.npz", **dict(record_texts(llm, args)))
        if args.only != "texts":
            about = json.dumps({"machine": machine(), "columns": ROUND_COLUMNS})
            np.savez_compressed(
                RECORDINGS / f"{name}-rounds.npz", about=np.array(about), **dict(record_rounds(llm, args))
            )


if __name__ == "__main__":
    main()
