"""Who drafts: by what drafts are worth, what they cost, and what a request asked for."""

from collections.abc import Mapping
from itertools import count

import pytest
import torch
from torch import Tensor

from outrider.workers.engine.request import Request
from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict, ints
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP, SamplingParams
from outrider.workers.speculation.choosing_drafter import ChoosingDrafter
from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.drafter_choice import DrafterChooser, worth_of_rows
from outrider.workers.speculation.drafter_prices import DrafterPrices

HIDDEN = torch.zeros(0, 1)
ROUND_S, ROW_S, STEP_S = 0.010, 0.0002, 0.001


class Scripted:
    """A drafter that says what it is told to, and remembers what was asked of it."""

    def __init__(self, name: str, confidences: list[float] | None = None) -> None:
        self.name, self.confidences = name, confidences
        self.steps: list[int] = []
        self.forgotten: list[int] = []

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[Draft]]:
        self.steps += round.draft_steps.tolist()
        counts = round.draft_steps.tolist() if self.confidences is None else [len(self.confidences)] * round.sequences
        sure = self.confidences or [9.0] * 16
        drafts = {i: [Draft(7, c, self.name) for c in sure[:n]] for i, n in zip(round.sequence_ids.tolist(), counts)}  # noqa: B905  # one each
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
        upkeep=ints([1]),
        followed_from=ints([1]),
    )


def a_verdict(drafts: int = 0, accepted: int = 0) -> Verdict:
    return Verdict(
        token_offsets=ints([0, 1 + accepted]),
        token_ids=ints([5] * (1 + accepted)),
        accepted_rows=ints([1 + accepted]),
        drafts_accepted=ints([accepted]),
        finish=ints([RUNNING]),
        stage_s=torch.tensor([ROUND_S + ROW_S * drafts]).double().numpy(),
    )


def chosen(
    confidences: list[float], *, engine: str | int = "auto", models: tuple[str, ...] = (MTP,), **request: object
) -> tuple[set[str], dict[str, Scripted]]:
    """Who drafted, of models that are right in seven of ten drafts and a proposal of these probabilities."""
    scripted = {name: Scripted(name) for name in models}
    sequence = a_sequence(**request)  # type: ignore[arg-type]  # a table
    drafter = ChoosingDrafter(scripted, Scripted(LOOKUP, confidences), {0: sequence}.get, engine)
    for _ in range(40):
        drafter.chooser.prices.observe_round(3, 3, ROUND_S + 2 * ROW_S, ROUND_S + 2 * ROW_S + STEP_S)
        for name in models:
            drafter.chooser.prices.observe_drafting(name, 2, 2 * STEP_S)
    drafts = drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)
    return {draft.drafter for draft in drafts.get(0, [])}, scripted


SURE, UNSURE = [0.97] * 8, [0.1, 0.05]


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


def test_of_two_models_the_one_that_is_right_more_often_drafts() -> None:
    prices = DrafterPrices()
    chooser = DrafterChooser([MTP, DRAFT_MODEL], prices)
    for _ in range(40):
        prices.observe_round(3, 3, ROUND_S, ROUND_S + STEP_S)
        chooser.acceptance[MTP].observe(0, 3, 0, finished=False)
        chooser.acceptance[DRAFT_MODEL].observe(0, 3, 3, finished=False)
        for name in (MTP, DRAFT_MODEL):
            prices.observe_drafting(name, 3, STEP_S)

    assert chooser.best_model(0, 3, sharing=1)[0] == DRAFT_MODEL
    for _ in range(400):
        prices.observe_drafting(DRAFT_MODEL, 3, 2 * ROUND_S)  # but takes longer than it saves
    assert chooser.best_model(0, 3, sharing=1)[0] == MTP
    assert chooser.best_model(0, 3, sharing=64)[0] == DRAFT_MODEL  # unless many share that
    assert chooser.best_model(0, 0, sharing=1) == (None, 0.0)


def test_it_turns_away_from_a_model_whose_drafts_fail() -> None:
    proposal = [0.4, 0.3]
    assert chosen(proposal)[0] == {MTP}
    model = Scripted(MTP)
    ticks = count()
    lookup, live = Scripted(LOOKUP, proposal), {0: a_sequence()}
    drafter = ChoosingDrafter({MTP: model}, lookup, live.get, "auto", clock=lambda: next(ticks) * ROUND_S / 2)
    drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)

    for _ in range(30):
        drafter.draft(a_round(steps=2, drafts=2), a_verdict(drafts=2), HIDDEN)

    assert model.steps[0] == 2
    assert model.steps[-1] == 0
    for _ in range(400):
        drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)
    assert 2 in model.steps[-300:]  # what was seen long ago is no reason for ever


def test_drafts_are_worth_their_rows_as_long_as_they_are_likely_to_be_reached() -> None:
    assert worth_of_rows([0.9, 0.5, 0.1], 0.2) == (2, pytest.approx(0.9 + 0.45 - 0.4))
    assert worth_of_rows([0.1], 0.2) == (0, 0.0)
    assert worth_of_rows([], 0.2) == (0, 0.0)


def test_the_price_of_a_row_is_the_time_that_rows_add_at_the_present_speed() -> None:
    prices = DrafterPrices()
    for number in range(200):
        rows = 1 + number % 4
        round_s = ROUND_S + ROW_S * (rows - 1)
        prices.observe_round(rows, 2, round_s, round_s)

    assert prices.of_row() == pytest.approx(ROW_S * prices.tokens_per_second, rel=0.02)
    assert prices.tokens_per_second == pytest.approx(2 / (ROUND_S + 1.5 * ROW_S), rel=0.05)
    prices.observe_drafting(MTP, 2, STEP_S)
    assert prices.of_drafting(MTP, 5) == pytest.approx(2 * prices.of_drafting(MTP, 2))
    assert prices.of_drafting(MTP, 0) == 0.0


def test_a_drafter_that_forgets_keeps_nothing_of_a_sequence() -> None:
    models, lookup = {MTP: Scripted(MTP)}, Scripted(LOOKUP, [0.5])
    drafter = ChoosingDrafter(models, lookup, {0: a_sequence()}.get, "auto")
    drafter.draft(a_round(steps=2), a_verdict(), HIDDEN)

    drafter.forget(ints([0]))

    assert (models[MTP].forgotten, lookup.forgotten) == ([0], [0])
