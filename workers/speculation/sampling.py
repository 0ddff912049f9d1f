"""From logits to tokens: one function transforms, one draws; target and drafter use them alike.

Coupled sampling (design: Zero difference): a draw is a pure function of the row's logits, its parameters and its key
(seed, output index, position). A row's result depends on nothing else in the call, to the bit. Ties go to the lowest
id everywhere. Knows nothing of drafts, rounds or how a sequence ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outrider.kernels.sampling import gumbel_noise, key_tensor, row_key, sequence_key
from outrider.workers.engine.round import FloatArray, IntArray, ints
from outrider.workers.sampling_params import SamplingParams
from outrider.workers.speculation.ordering import beyond_top_k_top_p, key_ids, order_keys

_sequence_key = lru_cache(maxsize=4096)(sequence_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One row of logits to draw a token from."""

    params: SamplingParams
    seed: int
    output_index: int
    position: int  # of the token being chosen, counted over prompt and output
    output_tokens: int  # how many of the output come before it
    eos_token_ids: tuple[int, ...]

    @property
    def noise_key(self) -> int:
        return row_key(_sequence_key(self.seed, self.output_index), self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """For each of T tokens the chosen one first, then the likeliest others, by (value descending, id ascending).

    `ranks` are 1-based places in the raw distribution. `offsets` is [T+1] into the other three, which are end to end.
    """

    offsets: IntArray
    ids: IntArray = field(default_factory=ints)
    ranks: IntArray = field(default_factory=ints)
    values: FloatArray = field(default_factory=lambda: np.zeros(0))


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The token of every row: float [n, vocab] -> int64 [n]. Leaves `logits` as it is."""
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if len(drawn) == len(rows) and rows:
        return _draw(logits, rows)
    tokens = lowest_argmax(_end_ids_masked(logits.float(), rows))
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        tokens[index] = _draw(logits[index], [rows[i] for i in drawn])
    return tokens


def sample_with_leads(logits: Tensor, rows: Sequence[SampleRow]) -> tuple[Tensor, Tensor]:
    """As `sample`, and by how much each token's score leads over the next best: float64 [n]."""
    scores = transform(logits, rows)
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        keys = key_tensor([rows[i].noise_key for i in drawn], logits.device)
        scores[torch.tensor(drawn, device=logits.device)] += gumbel_noise(keys, scores.shape[-1])
    best = functional.pad(scores, (0, 1), value=-torch.inf).topk(2, dim=-1).values
    return lowest_argmax(scores), best[:, 0] - best[:, 1]


def transform(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Scores after every transform, -inf where a token is ruled out: float [n, vocab] -> float64 [n, vocab].

    Order: min_tokens, temperature, min_p, top_k, top_p; each works on what the one before it left. A greedy row's
    scores are its logits after min_tokens.
    """
    logits = _end_ids_masked(logits.float(), rows)
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
    """Index of the largest of each row, the lowest among equals: [n, vocab] -> int64 [n]."""
    return scores.max(dim=-1).indices  # documented to give the first


def logprobs(logits: Tensor, token_ids: IntArray, counts: Sequence[int | None]) -> Logprobs:
    """Of chosen tokens [T], from their rows of raw logits, float [T, vocab].

    `counts[t]` likeliest tokens are listed beside the chosen one, which is not listed twice; None: nothing at all.
    """
    asked = [index for index, count in enumerate(counts) if count is not None]
    if not asked:
        return Logprobs(offsets=ints([0]))
    rows = logits[torch.tensor(asked, device=logits.device)].float()
    wanted = [counts[index] or 0 for index in asked]
    ids, ranks = _listed(rows, torch.from_numpy(token_ids[asked]).to(rows.device), max(wanted))
    values = rows.log_softmax(dim=-1).gather(-1, ids).double()
    # The chosen token stands in column 0; among the likeliest, where it would come again, it is dropped.
    listed = (ranks <= torch.tensor(wanted, device=rows.device)[:, None]) & (ids != ids[:, :1])
    listed[:, 0] = True
    widths = ints(np.zeros(len(counts)))
    widths[asked] = listed.sum(dim=-1).cpu().numpy()
    return Logprobs(
        offsets=ints(np.concatenate([[0], np.cumsum(widths)])),
        ids=ids[listed].cpu().numpy(),
        ranks=ranks[listed].cpu().numpy(),
        values=values[listed].cpu().numpy(),
    )


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    scores = transform(logits, rows)
    keys = key_tensor([row.noise_key for row in rows], logits.device)
    return lowest_argmax(scores.add_(gumbel_noise(keys, scores.shape[-1])))


def _end_ids_masked(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """`logits` with end-of-sequence and stop ids at -inf in rows before their min_tokens."""
    ruled_out = [
        (index, token_id)
        for index, row in enumerate(rows)
        if row.output_tokens < row.params.min_tokens
        for token_id in (*row.eos_token_ids, *(row.params.stop_token_ids or ()))
    ]
    if not ruled_out:
        return logits
    row_index, token_index = torch.tensor(ruled_out, device=logits.device).unbind(dim=1)
    return logits.index_put((row_index, token_index), logits.new_tensor(-torch.inf))


def _needs_order(params: SamplingParams, vocab: int) -> bool:
    return 0 < params.top_k < vocab or params.top_p < 1


def _cut_tails(logits: Tensor, scores: Tensor, params: list[SamplingParams], which: list[int]) -> None:
    """top_k and top_p on the rows `which` of `scores`, in place."""
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


def _listed(logits: Tensor, chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids and ranks of the chosen token, then of the `most` likeliest: int64 [n, 1 + most] each."""
    keys = order_keys(logits)
    best = keys.topk(min(most, logits.shape[-1]), dim=-1).values
    chosen_ranks = (keys > keys.gather(-1, chosen[:, None])).sum(dim=-1, keepdim=True) + 1
    best_ranks = torch.arange(1, best.shape[-1] + 1, device=logits.device).expand_as(best)
    ids = torch.cat([chosen[:, None], key_ids(best, logits.shape[-1])], dim=-1)
    return ids, torch.cat([chosen_ranks, best_ranks], dim=-1)
