"""Drafts with another, smaller model that has the same tokenizer (Leviathan, Kalman and Matias, arXiv 2211.17192).

Its cache lives in the blocks of the model that it drafts for: slot i holds token i, as there. So what the scheduler
does to a sequence's blocks (shares them for a prefix, takes them away, has rejected slots written again) is right for
both. It is fed every token that is certain, prompts included, and draws with the target's own noise and transforms.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.drafting.pairs import Pairs, accepted_pairs, one_each, pair_rows
from outrider.workers.drafting.stopping import Drafted
from outrider.workers.model.rows import Rows
from outrider.workers.model.stage_model import StageModel
from outrider.workers.sampling.head import Head
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import IntArray, Round, Verdict, ints
from outrider.workers.types.sampling_params import DRAFT_MODEL


class SeparateModelDrafter(MtpDrafter):
    """Implements Drafter: follows the model's tokens as an MTP module does, and the first token of a sequence too."""

    def _pairs(self, round: Round, verdict: Verdict, hidden: Tensor, kept: list[int]) -> Pairs:
        return with_openings(accepted_pairs(round, verdict, hidden, kept), round, ints(kept))


def with_openings(pairs: Pairs, round: Round, kept: IntArray) -> Pairs:
    """`pairs` of the round's sequences `kept`, and before them the token at position 0 of those that begin there.

    A pair is fed as its token at its slot; so that token is the pair of position -1. States have no part in it.
    """
    opening = (round.starts[kept] == 0).astype(np.int64)
    firsts = np.cumsum(pairs.lengths) - pairs.lengths
    places = firsts[opening == 1]
    return replace(
        pairs,
        lengths=pairs.lengths + opening,
        token_ids=np.insert(pairs.token_ids, places, round.token_ids[round.query_offsets[kept[opening == 1]]]),
        positions=np.insert(pairs.positions, places, -1),
        hidden=pairs.hidden.new_empty(len(pairs) + len(places), 0),
        hidden_rows=None,
    )


class SeparateModel:
    """Implements DraftModel, with all layers of a model in one stage, and its head. What it knows is in its cache."""

    def __init__(self, stage: StageModel, head: Head) -> None:
        self._stage, self._head = stage, head

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        going, depths, _, stop_rules = wanted
        states = self._stage.run(as_tokens(pair_rows(pairs)), None)
        rows, positions = pairs.last_rows[going], pairs.positions[pairs.last_rows[going]]
        drafts = [Drafts([], [], DRAFT_MODEL) for _ in depths]
        live, drafted = np.arange(len(depths)), Drafted(stop_rules, depths.tolist())
        for step in range(1, int(depths.max(initial=0)) + 1):
            tokens, leads = self._head.draw_with_leads(states, rows, pairs.sequence_ids[going[live]], positions + 2)
            for n, token, lead in zip(live.tolist(), tokens.tolist(), leads.tolist(), strict=True):
                drafts[n].token_ids.append(token)
                drafts[n].confidences.append(lead)
            over = np.array(drafted.over(live, leads.tolist()), dtype=bool)
            deeper = np.flatnonzero((depths[live] > step) & ~over)
            if not len(deeper):
                break
            live, positions, rows = live[deeper], positions[deeper] + 1, np.arange(len(deeper))
            states = self._stage.run(as_tokens(one_each(pairs, going[live], tokens[deeper], positions)), None)
        return drafts

    def forget(self, sequence_ids: IntArray) -> None:
        pass


def as_tokens(pairs: Rows) -> Rows:
    """The pair of position i as the token at position i + 1, in the same slot; from the start on slot 0 is seen too."""
    first_slots = np.where(pairs.first_slots == 1, 0, pairs.first_slots)
    return replace(pairs, rope_positions=pairs.cache_positions, first_slots=first_slots)
