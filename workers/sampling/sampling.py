"""Turns logits into tokens: transforms, then a draw. Model and drafter use the same functions.

Coupled sampling (docs/explanation/zero-difference.md): a draw is a pure function of the row's logits, its parameters
and its key (seed, output index, position). A row's result has the same bits in any call. Ties go to the lowest id.
Independent of drafts, rounds and the end of sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from outrider.kernels.sampling import gumbel_noise, key_tensor
from outrider.workers.sampling.ordering import beyond_top_k_top_p
from outrider.workers.sampling.row_rules import ruled
from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.types.requests.sampling_params import SamplingParams

__all__ = ["SampleRow", "lowest_argmax", "sample", "sample_with_leads", "transform"]


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Draws a token for every row: float [n, vocab] -> int64 [n]. Does not modify `logits`."""
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if len(drawn) == len(rows) and rows:
        return _draw(logits, rows)
    tokens = _best(ruled(logits.float(), rows), rows)
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        tokens[index] = _draw(logits[index], [rows[i] for i in drawn])
    return tokens


def sample_with_leads(logits: Tensor, rows: Sequence[SampleRow]) -> tuple[Tensor, Tensor]:
    """As `sample`, and each token's lead, its score minus the next best: float64 [n]."""
    scores = transform(logits, rows)
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        keys = key_tensor([rows[i].noise_key for i in drawn], logits.device)
        scores[torch.tensor(drawn, device=logits.device)] += gumbel_noise(keys, scores.shape[-1])
    best = functional.pad(scores, (0, 1), value=-torch.inf).topk(2, dim=-1).values
    return _best(scores, rows), (best[:, 0] - best[:, 1]).nan_to_num(nan=0.0, posinf=torch.inf)


def transform(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Scores after all transforms, -inf for excluded tokens: float [n, vocab] -> float64 [n, vocab].

    Order: the rules (row_rules.py), temperature, min_p, top_k, top_p; each works on the result of the one before. A
    greedy row's scores are its logits after the rules.
    """
    logits = ruled(logits.float(), rows)
    params = [row.params for row in rows]
    scores = logits.double()
    scores.div_(_column([1.0 if p.greedy else p.temperature for p in params], scores))
    if any(p.min_p > 0 and not p.greedy for p in params):
        floors = _column([0.0 if p.greedy else p.min_p for p in params], scores).log()
        scores.masked_fill_(scores < scores.amax(dim=-1, keepdim=True) + floors, -torch.inf)
    sorting = [i for i, p in enumerate(params) if not p.greedy and _needs_order(p, logits.shape[-1])]
    if sorting:
        _cut_tails(logits, scores, [params[i] for i in sorting], sorting)
    return scores


def lowest_argmax(scores: Tensor) -> Tensor:
    """Index of each row's largest value, the lowest among equals: [n, vocab] -> int64 [n]."""
    return scores.max(dim=-1).indices  # documented to give the first


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    scores = transform(logits, rows)
    keys = key_tensor([row.noise_key for row in rows], logits.device)
    return _best(scores.add_(gumbel_noise(keys, scores.shape[-1])), rows)


def _best(scores: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The token with the largest score; if the rules exclude all, the end-of-sequence token."""
    best = scores.max(dim=-1)
    nothing = best.values == -torch.inf
    if not nothing.any():
        return best.indices
    fallback = torch.tensor([row.fallback for row in rows], device=scores.device)
    return torch.where(nothing, fallback, best.indices)


def _needs_order(params: SamplingParams, vocab: int) -> bool:
    return 0 < params.top_k < vocab or params.top_p < 1


def _cut_tails(logits: Tensor, scores: Tensor, params: list[SamplingParams], which: list[int]) -> None:
    """Applies top_k and top_p to the rows `which` of `scores`, in place."""
    vocab = scores.shape[-1]
    top_k = torch.tensor([p.top_k if 0 < p.top_k < vocab else vocab for p in params], device=scores.device)
    top_p = _column([p.top_p for p in params], scores)[:, 0]
    if len(which) == len(scores):
        scores.masked_fill_(beyond_top_k_top_p(logits, scores, top_k, top_p), -torch.inf)
        return
    index = torch.tensor(which, device=scores.device)
    ruled_out = beyond_top_k_top_p(logits[index], scores[index], top_k, top_p)
    scores[index] = scores[index].masked_fill_(ruled_out, -torch.inf)


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
