"""Log-probabilities as a Verdict carries them."""

import numpy as np
import pytest
import torch

from outrider.workers.sampling.logprobs import logprobs
from outrider.workers.types.rounds.round import ints


def plain_logprobs(row: torch.Tensor, chosen: int, count: int) -> list[tuple[int, int, float]]:
    """(id, rank, value) of the chosen token, then of the `count` likeliest others among the first `count`."""
    values = (row.double() - row.double().logsumexp(0)).tolist()
    order = sorted(range(len(values)), key=lambda v: (-row[v].item(), v))
    ids = [chosen, *(v for v in order[:count] if v != chosen)]
    return [(v, order.index(v) + 1, values[v]) for v in ids]


@pytest.mark.parametrize("vocab", [4, 4096])
def test_the_chosen_token_comes_first_then_the_likeliest_by_value_and_id(vocab: int) -> None:
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    chosen = ints([0, 1, 2, 3, 0, 1])
    counts = [0, 3, None, 20, 1, 2]

    found = logprobs(logits, chosen, counts)

    for t, count in enumerate(counts):
        part = slice(found.offsets[t], found.offsets[t + 1])
        expected = [] if count is None else plain_logprobs(logits[t], int(chosen[t]), count)
        assert found.ids[part].tolist() == [token_id for token_id, _, _ in expected]
        assert found.ranks[part].tolist() == [rank for _, rank, _ in expected]
        np.testing.assert_allclose(found.values[part], [value for _, _, value in expected], atol=2e-6)


def test_a_tokens_logprobs_are_the_same_bits_in_any_company() -> None:
    logits = torch.randn(5, 4096)
    together = logprobs(logits, ints([5, 6, 7, 8, 9]), [4] * 5)

    for t in range(5):
        alone = logprobs(logits[t : t + 1], ints([5 + t]), [4])
        assert alone.values.tolist() == together.values[together.offsets[t] : together.offsets[t + 1]].tolist()


def test_nothing_asked_is_nothing_said() -> None:
    found = logprobs(torch.randn(2, 8), ints([1, 2]), [None, None])

    assert (found.offsets.tolist(), len(found.ids), len(found.ranks), len(found.values)) == ([0], 0, 0, 0)
