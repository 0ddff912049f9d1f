"""Drafts with another, smaller model that has the same tokenizer (Leviathan, Kalman and Matias, arXiv 2211.17192).

Its cache uses the same blocks as the model's: slot i holds token i in both. So sharing a prefix, preemption and
overwriting rejected slots work for both. It is fed every accepted token, prompts included, and samples with the same
noise and transforms as the model.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.drafting.pairs import Pairs, accepted_pairs, one_each, pair_rows
from outrider.workers.drafting.stopping import StopTracker
from outrider.workers.model.rows import Rows
from outrider.workers.model.stage_model import StageModel
from outrider.workers.sampling.head import Head
from outrider.workers.types.requests.sampling_params import DRAFT_MODEL
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, Round, Verdict, ints


class SeparateModelDrafter(MtpDrafter):
    """Implements Drafter: follows tokens as MtpDrafter does, and also the first token of a sequence."""

    def _pairs(self, round: Round, verdict: Verdict, hidden: Tensor, kept: list[int]) -> Pairs:
        return with_openings(accepted_pairs(round, verdict, hidden, kept), round, ints(kept))


def with_openings(pairs: Pairs, round: Round, kept: IntArray) -> Pairs:
    """Adds the token at position 0 to `pairs`, for those of the round's sequences `kept` that start there.

    A pair is fed as its token at its slot, so the added token is the pair of position -1. States are not used.
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
    """Implements DraftModel with all layers of a model in one stage, and its head. Its only state is the cache."""

    def __init__(self, stage: StageModel, head: Head) -> None:
        self._stage, self._head = stage, head

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        going, depths, _, stop_rules = wanted
        states = self._stage.run(as_tokens(pair_rows(pairs)), None)
        rows, positions = pairs.last_rows[going], pairs.positions[pairs.last_rows[going]]
        drafts = [Drafts([], [], DRAFT_MODEL) for _ in depths]
        live, tracker = np.arange(len(depths)), StopTracker(stop_rules, depths.tolist())
        for step in range(1, int(depths.max(initial=0)) + 1):
            tokens, leads = self._head.draw_with_leads(states, rows, pairs.sequence_ids[going[live]], positions + 2)
            for n, token, lead in zip(live.tolist(), tokens.tolist(), leads.tolist(), strict=True):
                drafts[n].token_ids.append(token)
                drafts[n].confidences.append(lead)
            over = np.array(tracker.ended(live, leads.tolist()), dtype=bool)
            deeper = np.flatnonzero((depths[live] > step) & ~over)
            if not len(deeper):
                break
            live, positions, rows = live[deeper], positions[deeper] + 1, np.arange(len(deeper))
            states = self._stage.run(as_tokens(one_each(pairs, going[live], tokens[deeper], positions)), None)
        return drafts

    def forget(self, sequence_ids: IntArray) -> None:
        pass


def as_tokens(pairs: Rows) -> Rows:
    """Turns the pair of position i into the token at position i + 1, in the same slot. Slot 0 is read if followed."""
    first_slots = np.where(pairs.first_slots == 1, 0, pairs.first_slots)
    return replace(pairs, rope_positions=pairs.cache_positions, first_slots=first_slots)
