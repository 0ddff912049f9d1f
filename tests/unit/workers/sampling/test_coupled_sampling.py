"""Drafts drawn with the target's own noise: the text is the target's, and acceptance is what theory promises."""

import random

import pytest
import torch
from torch import Tensor

from outrider.workers.sampling.sampling import SampleRow, sample
from outrider.workers.sampling.verify import Limits, verify
from outrider.workers.types.requests.sampling_params import SamplingParams

VOCAB, EOS, PROMPT = 50, 1, [3, 4, 5]
LIMITS = Limits(end_ids=frozenset({EOS}), max_length=60)


def target_logits(tokens: list[int]) -> Tensor:
    """A model whose logits depend on all tokens so far."""
    generator = torch.Generator().manual_seed(random.Random(str(tokens)).getrandbits(60))
    return torch.randn(VOCAB, generator=generator) * 2


def drafter_logits(tokens: list[int]) -> Tensor:
    return target_logits(tokens) + 0.7 * target_logits([*tokens, -1])


def draw(logits: list[Tensor], tokens: int, params: SamplingParams, output_index: int) -> list[int]:
    """Rows that choose the tokens at positions `tokens`, `tokens` + 1, .."""
    rows = [
        SampleRow(
            params=params,
            seed=17,
            output_index=output_index,
            position=tokens + j,
            output_tokens=tokens + j - len(PROMPT),
            eos_token_ids=(EOS,),
        )
        for j in range(len(logits))
    ]
    return sample(torch.stack(logits), rows).tolist()


def generate(params: SamplingParams, depth: int, output_index: int) -> tuple[list[int], int, int]:
    """Tokens, and how many drafts were made and accepted."""
    tokens, drafted, accepted_drafts, finish = list(PROMPT), 0, 0, 0
    while not finish:
        drafts: list[int] = []
        for _ in range(depth):
            drafts += draw([drafter_logits(tokens + drafts)], len(tokens + drafts), params, output_index)
        logits = [target_logits(tokens + drafts[:j]) for j in range(depth + 1)]
        accepted = verify(draw(logits, len(tokens), params, output_index), drafts, len(tokens), LIMITS)
        tokens, finish = tokens + accepted.token_ids, accepted.finish
        drafted, accepted_drafts = drafted + depth, accepted_drafts + accepted.drafts_accepted
    return tokens, drafted, accepted_drafts


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, min_tokens=10),
    ],
    ids=["greedy", "plain", "transformed"],
)
@pytest.mark.parametrize("output_index", [0, 3])
def test_the_text_is_the_same_whatever_the_depth(params: SamplingParams, output_index: int) -> None:
    plain, _, _ = generate(params, 0, output_index)

    for depth in (1, 2, 4):
        tokens, _, accepted = generate(params, depth, output_index)
        assert tokens == plain
        assert accepted > 0  # or the drafts were not worth the name


def test_acceptance_is_at_least_what_coupling_promises() -> None:
    """At least (1 - d) / (1 + d), where d is the distributions' total variation distance (arXiv 2408.07978)."""
    rows = 4000
    target, drafter = target_logits([0]), drafter_logits([0])
    distance = 0.5 * (target.softmax(-1) - drafter.softmax(-1)).abs().sum().item()

    drawn = draw([target] * rows, len(PROMPT), SamplingParams(), 0)
    drafted = draw([drafter] * rows, len(PROMPT), SamplingParams(), 0)
    accepted = sum(a == b for a, b in zip(drawn, drafted, strict=True)) / rows

    assert (1 - distance) / (1 + distance) - 0.02 < accepted < 1 - distance + 0.02
