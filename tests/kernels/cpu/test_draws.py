"""Draws by the compiled kernels are those of the torch path, token by token, whatever the parameters."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.cpu.context import DRAW, Context
from outrider.kernels.cpu.library import FLOAT32
from outrider.kernels.cpu.packing import Arena, packed
from outrider.kernels.sampling import sequence_key
from outrider.workers.sampling.sampling import sample
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.round import SequenceStart, ints

VOCABS = (1, 2, 3, 63, 64, 65, 97, 129, 1000, 4096, 5003)
EOS = (1, 0)


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(1)


def random_params(draw: random.Random, vocab: int, **fixed: float) -> SamplingParams:
    values = {
        "temperature": draw.choice([0.0, 0.05, 0.7, 1.0, 1.0, 1.7, 100.0]),
        "min_p": draw.choice([0.0, 0.0, 0.02, 0.3, 1.0]),
        "top_k": draw.choice([0, 0, 1, 2, 5, 50, vocab - 1, vocab, vocab + 1]),
        "top_p": draw.choice([1.0, 1.0, 0.01, 0.37, 0.9, 0.999, 1 - 1e-9]),
        "min_tokens": draw.choice([0, 0, 5, 12]),
    }
    stops = draw.sample(range(vocab), min(vocab, draw.choice([0, 0, 3, 20])))
    rules = random_rules(draw, vocab) if draw.random() < 0.5 else {}
    return SamplingParams(max_tokens=100, stop_token_ids=stops, **{**values, **rules, **fixed})  # type: ignore[arg-type]  # a table


def random_rules(draw: random.Random, vocab: int) -> dict[str, Any]:
    def some(most: int) -> list[int]:
        return [draw.randrange(vocab) for _ in range(draw.randrange(1, most + 1))]

    rules = {
        "logit_bias": {token: draw.choice([-100.0, -1.3, 0.7, 5.0]) for token in some(20)},
        "allowed_token_ids": some(vocab),
        "bad_words_token_ids": [some(3) for _ in range(20)],
        "repetition_penalty": draw.choice([0.3, 1.1, 2.7]),
        "frequency_penalty": draw.choice([-0.7, 0.3, 2.0]),
        "presence_penalty": draw.choice([-1.1, 0.1, 2.0]),
    }
    return {name: rule for name, rule in rules.items() if draw.random() < 0.5}


def starts_of(params: Sequence[SamplingParams], seed: int, vocab: int) -> SequenceStarts:
    """Sequence s is sampled by params[s], its prompt 10 + s tokens long, its output of a few of the vocabulary."""
    starts = SequenceStarts(tuple(token for token in EOS if token < vocab))
    draw = random.Random(seed)
    some = [draw.randrange(vocab) for _ in range(5)]
    starts.begin(
        SequenceStart(
            sequence_id=s,
            output_index=s % 3,
            seed=seed * 1000 + s,
            prompt_tokens=10 + s,
            params=one,
            prompt_ids=tuple(sorted({draw.randrange(vocab) for _ in range(10)})),
            output_token_ids=tuple(draw.choices(some, k=100)),
        )
        for s, one in enumerate(params)
    )
    return starts


def assert_same_draws(context: Context, logits: Tensor, starts: SequenceStarts, after: Sequence[int]) -> None:
    """Row i is sequence i's, after `after[i]` tokens of output."""
    which = np.arange(len(logits))
    positions = ints([10 + s + count for s, count in enumerate(after)])
    wanted = sample(logits, starts.rows(which, positions)).tolist()
    assert context.draw(logits, starts.draws(which, positions)).tolist() == wanted


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_random_rows_draw_the_torch_paths_tokens(context: Context, vocab: int, spread: float) -> None:
    draw = random.Random(vocab)
    rows = 200 if vocab <= 1000 else 60
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    params = [random_params(draw, vocab) for _ in range(rows)]

    assert_same_draws(context, logits, starts_of(params, vocab, vocab), [draw.randrange(15) for _ in range(rows)])


@pytest.mark.parametrize("vocab", [64, 97, 3000])
def test_rows_full_of_equal_logits_draw_the_torch_paths_tokens(context: Context, vocab: int) -> None:
    """Where top_k and top_p cut among equals, the lower ids stay."""
    draw = random.Random(vocab)
    logits = torch.randint(0, 4, (150, vocab), generator=torch.Generator().manual_seed(vocab)) * 0.25
    params = [
        random_params(draw, vocab, top_k=draw.randrange(vocab), top_p=draw.choice([1.0, draw.random()]))
        for _ in range(150)
    ]

    assert_same_draws(context, logits, starts_of(params, vocab, vocab), [draw.randrange(15) for _ in range(150)])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), vocab=st.integers(2, 200), seed=st.integers(-(2**63), 2**63 - 1))
def test_any_parameters_draw_the_torch_paths_token(data: st.DataObject, vocab: int, seed: int) -> None:
    params = SamplingParams(
        temperature=data.draw(st.one_of(st.just(0.0), st.floats(1e-6, 100))),
        top_k=data.draw(st.integers(0, vocab + 2)),
        top_p=data.draw(st.floats(1e-6, 1)),
        min_p=data.draw(st.floats(0, 1)),
        min_tokens=data.draw(st.integers(0, 3)),
        stop_token_ids=data.draw(st.lists(st.integers(0, vocab - 1), max_size=3)),
        max_tokens=10,
    )
    start = SequenceStart(
        sequence_id=0, output_index=data.draw(st.integers(0, 127)), seed=seed, prompt_tokens=10, params=params
    )
    starts = SequenceStarts((0, 1))
    starts.begin([start])
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed % 1000)) * 5

    assert_same_draws(Context(1), logits, starts, [data.draw(st.integers(0, 5))])


def test_greedy_draws_give_ties_to_the_lowest_id_wherever_they_lie(context: Context) -> None:
    logits = torch.zeros(50, 1000)
    for row in range(50):
        logits[row, [row * 20, *range(row * 20 + 7, 1000, 13)]] = 1.5

    tokens = context.draw(logits, np.zeros(50, dtype=DRAW))

    assert tokens.tolist() == [row * 20 for row in range(50)]


def test_minus_zero_ties_with_zero(context: Context) -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]])

    assert context.draw(logits, np.zeros(2, dtype=DRAW)).tolist() == [1, 1]


def draws_of(seeds: Sequence[int], output_index: int, position: int, **fields: float) -> np.ndarray:
    """DRAWs at temperature 1, unless `fields` say otherwise."""
    draws = np.zeros(len(seeds), dtype=DRAW)
    draws["sequence_key"] = [sequence_key(seed, output_index) for seed in seeds]
    draws["position"], draws["temperature"], draws["top_p"] = position, 1.0, 1.0
    for name, value in fields.items():
        draws[name] = value
    return draws


@pytest.mark.parametrize("vocab", [2, 63, 64, 65, 130])
def test_with_equal_logits_the_token_is_that_of_the_smallest_noise_integer(context: Context, vocab: int) -> None:
    """The noise falls as its integer rises, so this compares the integers of every row with the plain twin's."""
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), *range(1000, 1020)]
    for output_index, position in ((0, 0), (0, 1), (3, 77), (127, 163839)):
        tokens = context.draw(torch.full((len(seeds), vocab), 0.7), draws_of(seeds, output_index, position))

        bits = [reference.noise_bits(seed, output_index, position, vocab) for seed in seeds]
        assert tokens.tolist() == [row.index(min(row)) for row in bits]


@pytest.mark.parametrize("vocab", [65, 500])
def test_the_gap_that_noise_can_close_is_that_of_the_plain_twins_noise(context: Context, vocab: int) -> None:
    """Two entries whose logits differ by as much as their noise does, but for 1e-5 more or less."""
    seeds = list(range(40))
    noise = np.stack([reference.gumbel_noise(seed, 0, 9, vocab) for seed in seeds])
    left, right = np.array([[seed % vocab, (seed * 7 + 3) % vocab] for seed in seeds]).T
    rows = np.arange(len(seeds))
    for excess, winners in ((1e-5, left), (-1e-5, right)):
        logits = torch.full((len(seeds), vocab), -torch.inf)
        logits[rows, right] = 0.0
        gap = noise[rows, right] - noise[rows, left]
        logits[rows, left] = torch.from_numpy(gap * (1 + 1e-7) + excess).float()

        assert context.draw(logits, draws_of(seeds, 0, 9)).tolist() == winners.tolist()


def test_frequencies_are_those_of_the_softmax(context: Context) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    rows = 20_000

    tokens = context.draw(logits.repeat(rows, 1), draws_of(range(rows), 0, 3, temperature=1.3))

    expected = (logits.double() / 1.3).softmax(0).numpy() * rows
    chi_square = ((np.bincount(tokens, minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # four degrees of freedom: 0.1 %


@pytest.mark.parametrize(("top_p", "kept"), [(0.35, 4), (0.5, 5), (0.1, 1), (0.95, 10)])
def test_top_p_over_equal_logits_keeps_exactly_the_lowest_ids_that_reach_it(
    context: Context, top_p: float, kept: int
) -> None:
    tokens = context.draw(torch.zeros(3000, 10), draws_of(range(3000), 0, 0, top_p=top_p))

    assert set(tokens.tolist()) == set(range(kept))


def test_top_k_keeps_exactly_k_among_equals(context: Context) -> None:
    logits = torch.zeros(3000, 100)
    logits[:, 50] = 1.0

    tokens = context.draw(logits, draws_of(range(3000), 0, 0, top_k=4))

    assert set(tokens.tolist()) == {50, 0, 1, 2}


def test_min_p_keeps_what_is_at_least_that_likely_beside_the_best(context: Context) -> None:
    logits = torch.log(torch.tensor([0.4, 0.21, 0.19, 0.2])).repeat(3000, 1)

    tokens = context.draw(logits, draws_of(range(3000), 0, 0, min_p=0.51))

    assert set(tokens.tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_ids_are_ruled_out_up_to_min_tokens_and_not_after(context: Context, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=4, max_tokens=9, stop_token_ids=[7])
    starts = starts_of([params], 0, 20)
    logits = torch.zeros(1, 20)
    logits[0, [0, 1, 7]] = 50.0
    which = np.array([0])

    drawn = [int(context.draw(logits, starts.draws(which, ints([10 + after])))[0]) for after in range(8)]

    assert not {0, 1, 7}.intersection(drawn[:4])
    assert {0, 1, 7}.issuperset(drawn[4:])


@pytest.mark.parametrize("vocab", [65, 4096])
def test_a_draw_is_the_same_alone_among_others_and_on_any_number_of_threads(vocab: int) -> None:
    draw = random.Random(1)
    logits = torch.randn(24, vocab) * 2
    params = [random_params(draw, vocab) for _ in range(24)]
    starts = starts_of(params, 1, vocab)  # draws point into it
    draws = starts.draws(np.arange(24), np.arange(24) + 11)
    alone = [int(Context(1).draw(logits[i : i + 1], draws[i : i + 1])[0]) for i in range(24)]

    for threads in (1, 2, 3, 4):
        context = Context(threads)
        assert context.draw(logits, draws).tolist() == alone
        assert context.draw(logits.flip(0), draws[::-1].copy()).tolist() == alone[::-1]


def test_drawing_leaves_the_logits_as_they_are(context: Context) -> None:
    logits = torch.randn(5, 100)
    before = logits.clone()

    context.draw(logits, draws_of(range(5), 0, 0, top_k=3, top_p=0.5, min_p=0.1))

    assert torch.equal(logits, before)


def test_no_rows_draw_no_tokens(context: Context) -> None:
    assert len(context.draw(torch.empty(0, 50), np.empty(0, dtype=DRAW))) == 0


@pytest.mark.parametrize("vocab", [31, 97, 4096])
@pytest.mark.parametrize("threads", [1, 3])
def test_sampling_gives_the_rows_asked_for_with_raw_logits_and_the_tokens_drawn_from_them(
    vocab: int, threads: int
) -> None:
    draw, context, arena = random.Random(2), Context(threads), Arena()
    head = packed(arena, torch.randn(vocab, 40), FLOAT32)
    hidden, which = torch.randn(30, 40), np.array([29, 0, 3, 3, 11, 28])
    starts = starts_of([random_params(draw, vocab) for _ in which], 2, vocab)
    draws = starts.draws(np.arange(len(which)), np.arange(len(which)) + 12)

    logits, tokens = context.sample(head, hidden, which, draws)

    assert torch.equal(logits, context.linear(head, hidden[torch.from_numpy(which)]))
    assert tokens.tolist() == context.draw(logits, draws).tolist()
    assert context.sample(head, hidden, which[:0], draws[:0])[0].shape == (0, vocab)
