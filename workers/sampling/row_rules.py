"""The transforms before temperature in PyTorch: biases, penalties and excluded tokens.

Order: logit_bias, allowed tokens and bad words -> min_tokens -> grammar -> penalties (docs/sampling.md). The
order of exclusions does not matter. Each changed logit is computed in float64 and rounded to float32 once; the compiled
twin, kernels/cpu/src/rules.h, does the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.workers.sampling.sample_row import SampleRow
from outrider.workers.sampling.token_rules import allowed_of
from outrider.workers.types.rounds.round import ints


def ruled(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Logits after the rules, -inf for excluded tokens: float32 [n, vocab]. Does not modify `logits`."""
    changed = [index for index, row in enumerate(rows) if changes(row)]
    if not changed:
        return logits
    logits = logits.clone()
    for index in changed:
        _apply(rows[index], logits[index])
    return logits


def changes(row: SampleRow) -> bool:
    """Whether any rule may change the row's logits."""
    rules = row.rules
    return bool(
        row.output_tokens < row.params.min_tokens
        or len(rules.biased_ids)
        or row.allowed is not None
        or len(rules.bad_words)
        or rules.penalises
    )


def _apply(row: SampleRow, logits: Tensor) -> None:
    """Applies the rules to one row in place: float32 [vocab]."""
    rules, vocab = row.rules, logits.shape[-1]
    biased = torch.from_numpy(rules.biased_ids).to(logits.device)
    logits[biased] = (logits[biased].double() + torch.from_numpy(rules.biases).to(logits.device)).float()
    if row.allowed is not None:
        logits.masked_fill_(~torch.from_numpy(allowed_of(row.allowed, vocab)).to(logits.device), -torch.inf)
    ruled_out = rules.banned(row.output)
    if row.output_tokens < row.params.min_tokens:
        ruled_out += [*row.eos_token_ids, *(row.params.stop_token_ids or ())]
    logits[torch.from_numpy(ints(ruled_out)).to(logits.device)] = -torch.inf
    if rules.penalises:
        ids, counts = rules.counts(row.output)
        places = torch.from_numpy(ids).to(logits.device)
        penalised = rules.penalised(logits[places].double().cpu().numpy(), counts)
        logits[places] = torch.from_numpy(penalised).float().to(logits.device)
