"""A model's own text as training data: completions of training prompts by our engine, and how each is judged.

A small model's greedy text falls into loops: each repetition makes the next likelier. What is blamed is exactly what
the model repeated in its own words (sequence-level unlikelihood, arXiv 1908.04319, section 4.2); what is praised is its
code that parses. Asked anew every so many steps, so that what is judged is what the model says by then.
"""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from outrider.workers.llm import LLM
from outrider.workers.outputs import RequestOutput
from outrider.workers.sampling_params import SamplingParams
from outrider.workers.training.completions import loops, parses, repeated
from outrider.workers.training.export import export
from outrider.workers.training.network import Network
from outrider.workers.training.tokenizer import BEGIN_ID

SPAN = 6  # tokens that, said again, are a repetition
_GREEDY = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
_CODE_TEMPERATURE, _CODE_TOKENS = 0.8, 64
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Judged:
    """A text and, for each of its tokens, 1 (say it), -1 (do not) or 0."""

    token_ids: list[int]
    signs: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Judged text to train on: tokens and signs, int64 [rows, length]."""

    tokens: Tensor
    signs: Tensor


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said when it was asked: texts to learn from, and the shares of all its texts that had faults."""

    texts: list[Judged] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)


def blame_repetition(prompt: Sequence[int], said: Sequence[int]) -> Judged:
    """Blames the tokens with which a completion repeats itself; what it takes from its prompt does not count."""
    signs = [-int(again) for again in repeated(said, SPAN)]
    return Judged([*prompt, *said], [0] * len(prompt) + signs)


def praise(prompt: Sequence[int], said: Sequence[int]) -> Judged:
    """Praises all of a completion."""
    return Judged([*prompt, *said], [0] * len(prompt) + [1] * len(said))


def judge(greedy: Sequence[RequestOutput], code: Sequence[RequestOutput]) -> Said:
    """Keeps what there is to learn from: greedy text that repeats itself, and sampled code that parses."""
    blamed = [blame_repetition(out.prompt_token_ids, out.outputs[0].token_ids) for out in greedy]
    praised = [praise(out.prompt_token_ids, out.outputs[0].token_ids) for out in code if _parses(out)]
    looping = sum(loops(out.outputs[0].token_ids) for out in greedy)
    shares = {"looping": looping / len(greedy), "parsing": len(praised) / len(code)}
    return Said([*(text for text in blamed if any(text.signs)), *praised], shares)


def _parses(out: RequestOutput) -> bool:
    return parses(out.prompt or "", out.outputs[0].text)


def packed(texts: Sequence[Judged], length: int) -> Batch:
    """Each text's last tokens in a row that starts with begin-of-sentence; a short one is padded at its end."""
    tokens = torch.full((len(texts), length), BEGIN_ID)
    signs = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids, marks = text.token_ids[-length:], text.signs[-length:]
        tokens[row, : len(ids)], signs[row, : len(ids)] = torch.tensor(ids), torch.tensor(marks)
    tokens[:, 0], signs[:, 0] = BEGIN_ID, 0
    return Batch(tokens, signs)


def judgement_loss(logits: Tensor, targets: Tensor, signs: Tensor) -> Tensor:
    """Sum over tokens of -log p where `signs` is 1, and of -log(1 - p) where it is -1.

    logits float32 [tokens, vocabulary], targets and signs int64 [tokens]; p is the target's probability.
    """
    log_p = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    log_rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-5))
    return -torch.where(signs > 0, log_p, log_rest).sum()


def own_loss(network: Network, own: Batch) -> Tensor:
    """judgement_loss of a batch, divided by its tokens. Logits are computed for judged tokens alone."""
    states, _ = network.hidden_states(own.tokens[:, :-1])
    judged = own.signs[:, 1:] != 0
    logits = network.logits(states[judged])
    return judgement_loss(logits, own.tokens[:, 1:][judged], own.signs[:, 1:][judged]) / judged.numel()


class OwnText:
    """Owns the prompts, and the texts that the model made of some of them when it was last asked."""

    def __init__(self, prompts: Path, tokenizer: Path, folder: Path, seed: int, count: int = 32) -> None:
        """`prompts`: JSON, {"code": [...], "prose": [...]}, of training text; `count` of each kind are asked at a time.

        The model is written into `folder`, beside its tokenizer, for the engine to read.
        """
        self._prompts: dict[str, list[str]] = json.loads(prompts.read_text(encoding="utf-8"))
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
        self._seed, self._count = seed, count
        self._said = Said()

    def ask(self, network: Network, step: int) -> dict[str, float]:
        """Asks the model as it is now. Returns shares: of greedy text that loops at its end, of code that parses."""
        export(network, self._folder)
        drawn = random.Random(f"{self._seed}/{step}")
        code, prose = (drawn.sample(self._prompts[kind], self._count) for kind in ("code", "prose"))
        sampled = SamplingParams(temperature=_CODE_TEMPERATURE, seed=step, max_tokens=_CODE_TOKENS)
        with LLM(str(self._folder)) as llm:
            self._said = judge(llm.generate([*code, *prose], _GREEDY), llm.generate(code, sampled))
        return self._said.shares

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """At most `rows` of the texts, drawn at random."""
        texts = self._said.texts
        return packed(random.Random(f"{self._seed}/{step}").sample(texts, min(rows, len(texts))), length)
