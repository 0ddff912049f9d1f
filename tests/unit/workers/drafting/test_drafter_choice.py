"""Who drafts: by what drafts are worth, what they cost, and what a request asked for."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, takewhile
from operator import mul

import pytest
import torch
from torch import Tensor

from outrider.workers.drafting.choosing_drafter import ChoosingDrafter
from outrider.workers.drafting.drafter import DrafterError
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP, SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, IntArray, Round, Verdict, ints
from outrider.workers.types.rounds.sequence import Sequence

HIDDEN = torch.zeros(0, 1)


class Scripted:
    """A drafter that says what it is told to, and remembers what was asked of it."""

    def __init__(self, name: str, confidences: list[float] | None = None) -> None:
        self.name, self.confidences = name, confidences
        self.steps: list[int] = []
        self.forgotten: list[int] = []

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        self.steps += round.draft_steps.tolist()
        counts = round.draft_steps.tolist() if self.confidences is None else [len(self.confidences)] * round.sequences
        sure = self.confidences or [9.0] * 16
        drafts = {
            i: Drafts([7] * n, sure[:n], self.name) for i, n in zip(round.sequence_ids.tolist(), counts, strict=True)
        }
        return {i: own for i, own in drafts.items() if own}

    def forget(self, sequence_ids: IntArray) -> None:
        self.forgotten += sequence_ids.tolist()


def a_sequence(drafter: str | None = None, speculation: str | int | None = None) -> Sequence:
    params = SamplingParams(drafter=drafter, speculation=speculation)
    request = Request(request_id="r", prompt_token_ids=(3, 4), params=params, seed=0)
    return Sequence(sequence_id=0, request=request, output_index=0, token_ids=[3, 4], limit=100, draft_ceiling=16)


def a_round(steps: int, drafts: int = 0) -> Round:
    return Round(
        sequence_ids=ints([0]),
        query_offsets=ints([0, 1 + drafts]),
        token_ids=ints([5] * (1 + drafts)),
        starts=ints([9]),
        sample_counts=ints([1 + drafts]),
        draft_steps=ints([steps]),
        follows=ints([1]),
        followed_from=ints([1]),
    )


def a_verdict(drafts: int = 0, accepted: int = 0) -> Verdict:
    return Verdict(
        token_offsets=ints([0, 1 + accepted]),
        token_ids=ints([5] * (1 + accepted)),
        accepted_rows=ints([1 + accepted]),
        drafts_accepted=ints([accepted]),
        finish=ints([RUNNING]),
    )


class FixedValues:
    """Constant DraftValues: a row costs a tenth of a token, a model's drafts bring one."""

    lookup_common = False

    def __init__(self, best: str | None = MTP) -> None:
        self.best = best
        self.observed: list[int] = []  # how many looked-up drafts were chosen

    def looks_up(self, sequence_id: int) -> bool:
        return True

    def evaluate_lookup(self, proposal: Drafts) -> tuple[int, float]:
        kept = list(takewhile(lambda chance: chance > 0.1, accumulate(proposal.confidences, mul)))
        return len(kept), sum(kept) - 0.1 * len(kept)

    def observe_lookup(self, sequence_id: int, kept: Drafts) -> None:
        self.observed.append(len(kept))

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        return (self.best, 1.0) if steps and self.best else (None, 0.0)


def chosen(
    confidences: list[float],
    *,
    engine: str | int = "auto",
    models: tuple[str, ...] = (MTP,),
    values: FixedValues | None = None,
    **request: object,
) -> tuple[set[str], dict[str, Scripted]]:
    """Who drafted, of models and a proposal of these chances."""
    scripted = {name: Scripted(name) for name in models}
    sequence = a_sequence(**request)  # type: ignore[arg-type]  # a table
    values = values or FixedValues(next(iter(models), None))
    drafter = ChoosingDrafter(scripted, Scripted(LOOKUP, confidences), {0: sequence}.get, engine, values)
    drafts = drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)
    return {own.drafter for own in drafts.values() if own}, scripted


SURE, UNSURE = [0.97] * 8, [0.1, 0.05]


def test_what_is_looked_up_for_a_sequence_is_reported() -> None:
    values = [FixedValues() for _ in range(3)]
    chosen(SURE, values=values[0])
    chosen(UNSURE, values=values[1])
    chosen([], values=values[2])

    assert [each.observed for each in values] == [[8], [0], [0]]


def test_a_prompts_chunk_is_no_round_in_which_nothing_was_found() -> None:
    values = FixedValues()
    drafter = ChoosingDrafter({MTP: Scripted(MTP)}, Scripted(LOOKUP, []), {0: a_sequence()}.get, "auto", values)
    drafter.draft(replace(a_round(steps=0), sample_counts=ints([0])), a_verdict(), HIDDEN)
    assert values.observed == []
    drafter.draft(a_round(steps=0), a_verdict(), HIDDEN)

    assert values.observed == [0]


def test_the_drafts_that_are_worth_more_are_taken_and_the_models_steps_spared() -> None:
    assert chosen(SURE)[0] == {LOOKUP}
    assert chosen(SURE)[1][MTP].steps == [0]
    assert chosen(UNSURE)[0] == {MTP}
    assert chosen([])[0] == {MTP}


def test_without_a_model_what_is_worth_its_rows_is_looked_up() -> None:
    assert chosen(SURE, models=())[0] == {LOOKUP}
    assert chosen([0.001], models=())[0] == set()


@pytest.mark.parametrize("engine", ["auto", 2])
@pytest.mark.parametrize("name", [MTP, LOOKUP, DRAFT_MODEL])
def test_a_request_has_the_drafter_that_it_asked_for(name: str, engine: str | int) -> None:
    for confidences in (SURE, UNSURE):
        assert chosen(confidences, engine=engine, models=(MTP, DRAFT_MODEL), drafter=name)[0] == {name}


def test_a_fixed_depth_is_the_first_models_own_and_looked_up_without_one() -> None:
    assert chosen(SURE, speculation=2)[0] == {MTP}
    assert chosen(SURE, engine=2)[0] == {MTP}
    assert chosen(SURE, engine=2, drafter=AUTO, speculation="auto")[0] == {LOOKUP}
    assert chosen(UNSURE, engine=2, models=())[0] == {LOOKUP}


def test_of_two_models_the_one_that_is_worth_more_drafts() -> None:
    for best in (MTP, DRAFT_MODEL):
        assert chosen([], models=(MTP, DRAFT_MODEL), values=FixedValues(best))[0] == {best}


def test_a_drafter_that_forgets_keeps_nothing_of_a_sequence() -> None:
    models, lookup = {MTP: Scripted(MTP)}, Scripted(LOOKUP, [0.5])
    drafter = ChoosingDrafter(models, lookup, {0: a_sequence()}.get, "auto", FixedValues())
    drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)

    drafter.forget(ints([0]))

    assert (models[MTP].forgotten, lookup.forgotten) == ([0], [0])


class Broken(Scripted):
    """Fails as it is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MTP)
        self._error = error

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> dict[int, Drafts]:
        raise self._error


def test_the_drafter_that_fails_is_named() -> None:
    sequence, values = a_sequence(), FixedValues()
    broken = ChoosingDrafter({MTP: Broken(ValueError("no"))}, None, {0: sequence}.get, "auto", values)

    with pytest.raises(DrafterError, match="ValueError: no") as failed:
        broken.draft(a_round(steps=0), a_verdict(), HIDDEN)
    assert failed.value.drafter == MTP

    lost = ChoosingDrafter({MTP: Broken(EngineStoppedError("rank 1"))}, None, {0: sequence}.get, "auto", values)
    with pytest.raises(EngineStoppedError, match="rank 1"):
        lost.draft(a_round(steps=0), a_verdict(), HIDDEN)


def test_a_drafter_that_fails_keeps_no_other_from_the_round() -> None:
    model, lookup = Scripted(MTP), Broken(ValueError("no"))
    drafter = ChoosingDrafter({MTP: model}, lookup, {0: a_sequence()}.get, "auto", FixedValues())

    with pytest.raises(DrafterError, match="ValueError: no") as failed:
        drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)
    assert failed.value.drafter == LOOKUP
    assert isinstance(failed.value.__cause__, ValueError)
    assert model.steps == [2]


def test_of_several_drafters_that_fail_each_is_named() -> None:
    model, lookup = Broken(ValueError("no")), Broken(ValueError("neither"))
    drafter = ChoosingDrafter({MTP: model}, lookup, {0: a_sequence()}.get, "auto", FixedValues())

    with pytest.raises(ExceptionGroup) as failed:
        drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)
    assert {each.drafter: str(each) for each in failed.value.exceptions} == {
        LOOKUP: "ValueError: neither",
        MTP: "ValueError: no",
    }
