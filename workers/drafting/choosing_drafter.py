"""All drafters of a replica behind one: each sequence's drafts come from the one it asked for, or the one that pays.

Models take part in every round, so that the caches of those whom they follow stay right, whoever drafts. Prompt lookup
goes first, since it costs next to nothing; a model's steps are spared where its proposal is worth more. What anything
is worth, and whom models follow, the depth policy says, in the one currency in which it weighs depths.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from outrider.workers.drafting.drafter import Drafter, DrafterError
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.round import RUNNING, IntArray, Round, Verdict, ints
from outrider.workers.types.sampling_params import AUTO, LOOKUP, SamplingParams
from outrider.workers.types.sequence import Sequence

_NOTHING = Drafts([], [])


class DraftValues(Protocol):
    """What drafts are worth at present. DepthPolicy is one."""

    @property
    def lookup_common(self) -> bool:
        """Whether a good part of the texts of late was looked up."""
        ...

    def looks_up(self, sequence_id: int) -> bool:
        """Whether it may pay to look anything up for the sequence."""
        ...

    def evaluate_lookup(self, proposal: Drafts) -> tuple[int, float]:
        """How many of the looked-up drafts are worth verifying, and what these bring above other rows' price."""
        ...

    def observe_lookup(self, sequence_id: int, kept: Drafts) -> None:
        """So much of what was looked up was chosen for the sequence: nothing where a model is to draft."""
        ...

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and what looked-up ones must be worth to be preferred.

        `sharing` sequences share the steps.
        """
        ...


def only_drafter(params: SamplingParams, speculation: str | int, models: Collection[str]) -> str | None:
    """Who drafts for a request whatever anything is worth, one of `models` or LOOKUP; None where worth decides.

    A fixed depth, or the engine's `speculation` where the request has none, is the first model's, if there is one.
    """
    wanted = params.drafter or AUTO
    if wanted != AUTO:
        return wanted if wanted in models else LOOKUP
    depth = params.speculation or speculation
    return next(iter(models), LOOKUP) if isinstance(depth, int) else None


def _ask(
    name: str, drafter: Drafter, round: Round, verdict: Verdict, hidden: Tensor, failed: list[DrafterError]
) -> Mapping[int, Drafts]:
    """What one drafter makes. Its error joins those that `failed`, so that the others miss nothing of the round."""
    try:
        return drafter.draft(round, verdict, hidden)
    except EngineStoppedError:
        raise
    except Exception as error:
        failure = DrafterError(name, error)
        failure.__cause__ = error
        failed.append(failure)
        return {}


class ChoosingDrafter:
    """Implements Drafter."""

    def __init__(
        self,
        models: Mapping[str, Drafter],
        lookup: Drafter | None,
        live: Callable[[int], Sequence | None],
        speculation: str | int,
        values: DraftValues,
    ) -> None:
        """`models` pay for each step. `live` gives the sequence of an id, None once it ended.

        `speculation` is the engine's, for requests without their own.
        """
        self._models, self._lookup, self._live = models, lookup, live
        self._speculation, self._values = speculation, values

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        drafts: dict[int, Drafts] = {}
        failed: list[DrafterError] = []
        looked_up = _ask(LOOKUP, self._lookup, round, verdict, hidden, failed) if self._lookup is not None else {}
        owners, found = self._choose(round, verdict, looked_up)
        for name, drafter in self._models.items():
            drafts.update(_ask(name, drafter, _for(name, owners, round), verdict, hidden, failed))
        drafts.update(found)
        if failed:
            raise failed[0] if len(failed) == 1 else ExceptionGroup("drafters failed", failed)
        return drafts

    def forget(self, sequence_ids: IntArray) -> None:
        for drafter in (*self._models.values(), *([self._lookup] if self._lookup is not None else [])):
            drafter.forget(sequence_ids)

    def _choose(
        self, round: Round, verdict: Verdict, found: Mapping[int, Drafts]
    ) -> tuple[list[str | None], dict[int, Drafts]]:
        """Which model drafts for each of the round's sequences, and what was looked up for the others."""
        owners: list[str | None] = []
        kept: dict[int, Drafts] = {}
        depths = round.draft_steps.tolist()
        sharing = self._sharing(depths, verdict) if found or len(self._models) > 1 else 0
        columns = zip(round.sequence_ids.tolist(), round.sample_counts.tolist(), depths, strict=True)
        for sequence_id, samples, steps in columns:
            owner, own = self._chosen(sequence_id, steps, sharing, found.get(sequence_id, _NOTHING))
            owners.append(owner)
            if samples:  # nothing is drafted after a prompt's chunk
                self._values.observe_lookup(sequence_id, own)
            if own:
                kept[sequence_id] = own
        return owners, kept

    @staticmethod
    def _sharing(depths: list[int], verdict: Verdict) -> int:
        """How many sequences draft together."""
        return sum(depth > 0 and end == RUNNING for depth, end in zip(depths, verdict.finish.tolist(), strict=True))

    def _chosen(self, sequence_id: int, steps: int, sharing: int, proposal: Drafts) -> tuple[str | None, Drafts]:
        """The model that is to draft for the sequence, or None and what is kept of the proposal."""
        sequence = self._live(sequence_id)
        if sequence is None:
            return None, _NOTHING
        only = only_drafter(sequence.request.params, self._speculation, self._models)
        if only is not None:
            return (None, proposal) if only == LOOKUP else (only, _NOTHING)
        if not proposal and len(self._models) < 2:
            return next(iter(self._models), None), _NOTHING
        kept, worth = self._values.evaluate_lookup(proposal)
        model, to_beat = self._values.best_model(sequence_id, steps, sharing)
        return (model, _NOTHING) if not kept or worth <= to_beat else (None, proposal.first(kept))


def _for(name: str, owners: list[str | None], round: Round) -> Round:
    """The round as a model follows it that drafts for the sequences which are its own."""
    if all(owner == name for owner in owners):
        return round
    own = ints([owner == name for owner in owners])
    return replace(round, draft_steps=round.draft_steps * own)
