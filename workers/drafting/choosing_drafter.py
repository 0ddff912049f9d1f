"""Combines a replica's drafters: each sequence's drafts come from the drafter it requested, or the one worth most.

Prompt lookup runs first, since it costs almost nothing. If its drafts are worth more than a model's, the model makes no
drafts for the sequence. Models still process every round, to keep their caches complete. The depth policy supplies all
values (DraftValues) and decides which sequences the models follow.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from outrider.workers.drafting.drafter import Drafter, DrafterError
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.requests.sampling_params import AUTO, LOOKUP, SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, IntArray, Round, Verdict, ints
from outrider.workers.types.rounds.sequence import Sequence

_NOTHING = Drafts([], [])


class DraftValues(Protocol):
    """The present values of drafts, in tokens. Implemented by DepthPolicy."""

    @property
    def lookup_common(self) -> bool:
        """Whether prompt lookup has succeeded often lately."""
        ...

    def looks_up(self, sequence_id: int) -> bool:
        """Whether prompt lookup may pay for the sequence."""
        ...

    def evaluate_lookup(self, proposal: Drafts) -> tuple[int, float]:
        """How many looked-up drafts are worth verifying, and their expected tokens minus their price."""
        ...

    def observe_lookup(self, sequence_id: int, kept: Drafts) -> None:
        """Reports the looked-up drafts that were kept for the sequence; none if a model drafts instead."""
        ...

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose drafts are worth most, and the worth that looked-up drafts must exceed.

        `sharing`: sequences that draft together and share the steps' time.
        """
        ...


def only_drafter(params: SamplingParams, speculation: str | int, models: Collection[str]) -> str | None:
    """The only drafter that may draft for the request (one of `models` or LOOKUP); None if the values decide.

    With a fixed depth (the request's, else the engine's `speculation`) that is the first model, if there is one.
    """
    wanted = params.drafter or AUTO
    if wanted != AUTO:
        return wanted if wanted in models else LOOKUP
    depth = params.speculation or speculation
    return next(iter(models), LOOKUP) if isinstance(depth, int) else None


def _ask(
    name: str, drafter: Drafter, round: Round, verdict: Verdict, hidden: Tensor, failed: list[DrafterError]
) -> Mapping[int, Drafts]:
    """Calls one drafter. Appends its error to `failed`, so that the other drafters still process the round."""
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
        """`models`: drafters whose steps take time. `live` returns the sequence of an id, None if it has ended.

        `speculation`: the engine's setting, for requests without their own.
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
        """The model that drafts for each sequence of the round, or None; and the looked-up drafts that are kept."""
        owners: list[str | None] = []
        kept: dict[int, Drafts] = {}
        depths = round.draft_steps.tolist()
        sharing = self._sharing(depths, verdict) if found or len(self._models) > 1 else 0
        columns = zip(round.sequence_ids.tolist(), round.sample_counts.tolist(), depths, strict=True)
        for sequence_id, samples, steps in columns:
            owner, own = self._chosen(sequence_id, steps, sharing, found.get(sequence_id, _NOTHING))
            owners.append(owner)
            if samples:  # there are no drafts after an unfinished prompt
                self._values.observe_lookup(sequence_id, own)
            if own:
                kept[sequence_id] = own
        return owners, kept

    @staticmethod
    def _sharing(depths: list[int], verdict: Verdict) -> int:
        """Number of sequences that draft together."""
        return sum(depth > 0 and end == RUNNING for depth, end in zip(depths, verdict.finish.tolist(), strict=True))

    def _chosen(self, sequence_id: int, steps: int, sharing: int, proposal: Drafts) -> tuple[str | None, Drafts]:
        """The model that drafts for the sequence, or None and the part of the proposal to keep."""
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
    """The round for model `name`: draft steps only of the sequences that it drafts for."""
    if all(owner == name for owner in owners):
        return round
    own = ints([owner == name for owner in owners])
    return replace(round, draft_steps=round.draft_steps * own)
