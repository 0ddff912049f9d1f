"""What a model's own text teaches it: what is blamed and praised, and that learning heeds it."""

import pytest
import torch

from outrider.workers.training.completions import repeated
from outrider.workers.training.network import Network
from outrider.workers.training.own_text import (
    SPAN,
    Batch,
    Judged,
    blame_repetition,
    judgement_loss,
    own_loss,
    packed,
    praise,
)
from outrider.workers.training.shape import Shape
from outrider.workers.training.train import Recipe, Trainer

TINY = Shape(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
    num_attention_heads=2,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    q_lora_rank=16,
    kv_lora_rank=24,
    n_routed_experts=4,
    moe_intermediate_size=16,
)


def test_a_token_repeats_if_the_span_that_it_ends_was_said_before() -> None:
    assert repeated([1, 2, 3, 1, 2, 3, 1], span=3) == [False, False, False, False, False, True, True]
    assert repeated([5, 5, 5, 5], span=3) == [False, False, False, True]
    assert repeated([1, 2, 3, 4, 3, 2], span=2) == [False] * 6
    assert repeated([1, 2], span=3) == [False, False]


def test_what_a_completion_takes_from_its_prompt_is_not_blamed() -> None:
    span = list(range(10, 10 + SPAN))

    assert blame_repetition(span, span) == Judged([*span, *span], [0] * 2 * SPAN)
    assert blame_repetition([3], [*span, *span]).signs == [0] * 2 * SPAN + [-1]
    assert praise([3, 4], [5]) == Judged([3, 4, 5], [0, 0, 1])


def test_rows_keep_the_ends_of_texts_and_judge_no_padding() -> None:
    batch = packed([Judged([5, 6, 7, 8], [1, 1, -1, 1]), Judged([0, 9], [0, -1])], length=3)

    assert batch.tokens.tolist() == [[0, 7, 8], [0, 9, 0]]
    assert batch.signs.tolist() == [[0, -1, 1], [0, -1, 0]]


def test_the_loss_is_what_praise_misses_and_what_blame_leaves() -> None:
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3]]).log()

    loss = judgement_loss(logits, torch.tensor([0, 2]), torch.tensor([-1, 1]))

    assert loss.item() == pytest.approx(-torch.tensor([0.1, 0.3]).log().sum().item(), rel=1e-5)


def test_a_certain_repetition_has_a_finite_loss_that_still_pulls() -> None:
    logits = torch.tensor([[9.0, 0.0]], requires_grad=True)

    judgement_loss(logits, torch.tensor([0]), torch.tensor([-1])).backward()  # type: ignore[no-untyped-call]  # torch's

    assert logits.grad is not None
    assert logits.grad[0, 0] > 0.5


def test_training_lowers_what_is_blamed_and_raises_what_is_praised_from_the_tokens_before_it() -> None:
    torch.manual_seed(0)
    trainer = Trainer(Network(TINY), Recipe(muon_warmup_steps=1, own_weight=5.0))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, TINY.vocab_size, (2, 13), generator=generator)
    text = torch.randint(3, TINY.vocab_size, (2, 14), generator=generator)
    signs = torch.zeros_like(tokens)
    signs[0, 4:], signs[1, 4:] = -1, 1
    own = Batch(tokens, signs)
    before = probabilities(trainer.network, tokens)

    for _ in range(12):
        trainer.advance(text, 0.0, own)

    after = probabilities(trainer.network, tokens)
    assert after[0, 3:].mean() < before[0, 3:].mean()
    assert after[1, 3:].mean() > 2 * before[1, 3:].mean()


@torch.no_grad()
def probabilities(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    """Of each token from the second on, given those before it."""
    logits = network.logits(network.hidden_states(tokens[:, :-1])[0])
    return logits.softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


@torch.no_grad()
def test_own_text_without_a_judgement_costs_nothing() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(3, TINY.vocab_size, (2, 13))

    assert own_loss(Network(TINY), Batch(tokens, torch.zeros_like(tokens))).item() == 0
