"""The rules for study put out the target's distribution exactly: by going through every block of drafts there is."""

import itertools

import numpy as np
import pytest

from outrider.workers.sampling.rules import BLOCK, REJECTION, Floats, last_distribution, stop_probabilities

VOCAB, DRAFTS = 3, 3
Text = tuple[int, ...]


class Chain:
    """A distribution of the next token for every text, drawn at random; some tokens ruled out, as top_k would."""

    def __init__(self, seed: int, *, ruled_out: bool = False) -> None:
        random = np.random.default_rng(seed)
        self._rows: dict[Text, Floats] = {}
        for length in range(DRAFTS + 1):
            for text in itertools.product(range(VOCAB), repeat=length):
                row = random.dirichlet(np.full(VOCAB, 0.7))
                if ruled_out:
                    row[random.integers(VOCAB)] = 0.0
                self._rows[text] = row / row.sum()

    def after(self, tokens: Text, count: int) -> Floats:
        """The rows given the first 0, 1, .. of `tokens`, [count, VOCAB]."""
        return np.stack([self._rows[tokens[:n]] for n in range(count)])

    def probability(self, tokens: Text, given: int = 0) -> float:
        return float(np.prod([self._rows[tokens[:n]][tokens[n]] for n in range(given, len(tokens))]))


def put_out(rule: str, target: Chain, draft: Chain) -> tuple[dict[Text, float], float]:
    """The distribution of the next DRAFTS + 1 tokens, and how many drafts stand in the mean."""
    said: dict[Text, float] = dict.fromkeys(itertools.product(range(VOCAB), repeat=DRAFTS + 1), 0.0)
    mean = 0.0
    for drafts in itertools.product(range(VOCAB), repeat=DRAFTS):
        drafted = draft.probability(drafts)
        if not drafted:
            continue
        p, q = target.after(drafts, DRAFTS + 1), draft.after(drafts, DRAFTS)
        stops = stop_probabilities(rule, p, q, drafts)
        assert stops.sum() == pytest.approx(1.0)
        assert stops.min() >= -1e-15
        mean += drafted * float(stops @ np.arange(DRAFTS + 1))
        for stood, stop in enumerate(stops):
            last = last_distribution(rule, p, q, drafts, stood)
            for token, chance in enumerate(last):
                begun = (*drafts[:stood], token)
                for rest in itertools.product(range(VOCAB), repeat=DRAFTS - stood):
                    text = (*begun, *rest)
                    said[text] += drafted * stop * chance * target.probability(text, given=len(begun))
    return said, mean


@pytest.mark.parametrize("rule", [REJECTION, BLOCK])
@pytest.mark.parametrize("seed", range(4))
def test_what_comes_out_has_the_targets_distribution(rule: str, seed: int) -> None:
    target, draft = Chain(seed, ruled_out=seed % 2 == 1), Chain(100 + seed, ruled_out=seed == 3)

    said, _ = put_out(rule, target, draft)

    assert said == pytest.approx({text: target.probability(text) for text in said}, abs=1e-12)


def test_block_verification_accepts_no_less_than_rejection_sampling_and_mostly_more() -> None:
    means = [[put_out(rule, Chain(seed), Chain(100 + seed))[1] for rule in (REJECTION, BLOCK)] for seed in range(6)]

    assert all(block >= rejection - 1e-12 for rejection, block in means)
    assert sum(block for _, block in means) > 1.01 * sum(rejection for rejection, _ in means)


@pytest.mark.parametrize("rule", [REJECTION, BLOCK])
def test_a_drafter_that_is_the_target_is_never_stopped(rule: str) -> None:
    chain = Chain(5)
    drafts = (0, 2, 1)

    stops = stop_probabilities(rule, chain.after(drafts, DRAFTS + 1), chain.after(drafts, DRAFTS), drafts)

    assert stops.tolist() == pytest.approx([0, 0, 0, 1])
