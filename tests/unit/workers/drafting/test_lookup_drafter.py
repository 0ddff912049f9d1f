"""What is looked up, how sure it is, and what is learned from the text alone."""

from collections.abc import Callable

import torch

from outrider.workers.drafting.lookup_drafter import LookupDrafter, continued
from outrider.workers.drafting.match_acceptance import MatchAcceptance, SequenceAcceptance
from outrider.workers.drafting.suffix_index import LONGEST
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import LOOKUP, SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, Verdict, ints
from outrider.workers.types.rounds.sequence import Sequence

HIDDEN = torch.zeros(0, 1)


def a_sequence(tokens: list[int], *, ceiling: int = 16, limit: int = 1000, sequence_id: int = 0) -> Sequence:
    request = Request(request_id="r", prompt_token_ids=tuple(tokens), params=SamplingParams(temperature=0), seed=0)
    return Sequence(
        sequence_id=sequence_id, request=request, output_index=0, token_ids=list(tokens), limit=limit,
        draft_ceiling=ceiling,
    )  # fmt: skip


def a_round(*, rows: int = 1, samples: int = 1, start: int = 0, sequence_id: int = 0) -> Round:
    return Round(
        sequence_ids=ints([sequence_id]),
        query_offsets=ints([0, rows]),
        token_ids=ints([0] * rows),
        starts=ints([start]),
        sample_counts=ints([samples]),
    )


def drafted(drafter: LookupDrafter) -> list[int]:
    return drafter.draft(a_round(), Verdict(), HIDDEN).get(0, Drafts([], [])).token_ids


def test_what_followed_the_longest_match_is_proposed_and_says_whose_it_is() -> None:
    sequence = a_sequence([5, 6, 7, 8, 9, 10, 3, 5, 6, 7])
    drafter = LookupDrafter({0: sequence}.get)

    drafts = drafter.draft(a_round(), Verdict(), HIDDEN)[0]

    assert drafts.token_ids[:4] == [8, 9, 10, 3]
    assert drafts.drafter == LOOKUP
    assert all(0 < confidence < 1 for confidence in drafts.confidences)
    assert drafts.confidences[0] < drafts.confidences[3]  # where drafts stand, the match grows


def test_a_loop_is_continued_past_the_end_of_the_text() -> None:
    assert drafted(LookupDrafter({0: a_sequence([1, 2, 3, 1, 2, 3])}.get))[:7] == [1, 2, 3, 1, 2, 3, 1]
    assert continued([4, 5, 6], 1, 5) == [5, 6, 5, 6, 5]


def test_no_more_is_proposed_than_the_ceiling_and_the_limit_allow() -> None:
    loop = [1, 2] * 6

    assert len(drafted(LookupDrafter({0: a_sequence(loop, ceiling=3)}.get))) == 3
    assert len(drafted(LookupDrafter({0: a_sequence(loop, limit=len(loop) + 3)}.get))) == 2
    assert drafted(LookupDrafter({0: a_sequence(loop, limit=len(loop) + 1)}.get)) == []
    assert drafted(LookupDrafter({0: a_sequence(loop, ceiling=0)}.get)) == []


def test_a_prompt_is_indexed_chunk_by_chunk_and_drafted_for_at_its_end_only() -> None:
    sequence = a_sequence([1, 2, 3] * 10)
    drafter = LookupDrafter({0: sequence}.get)

    assert drafter.draft(a_round(rows=20, samples=0), Verdict(), HIDDEN) == {}
    assert drafter.draft(a_round(rows=10, samples=1, start=20), Verdict(), HIDDEN)[0]


def test_a_sequence_that_ended_is_forgotten() -> None:
    live = {0: a_sequence([1, 2, 1, 2])}
    drafter = LookupDrafter(live.get)
    assert drafted(drafter)
    live.clear()

    assert drafted(drafter) == []
    drafter.forget(ints([0]))
    assert len(drafter) == 0


def test_it_learns_from_rounds_in_which_others_drafted() -> None:
    """The text alone says whether a proposal would have stood."""
    confidences = []
    for new in (lambda number: 4, lambda number: 100 + number):  # behind 1, 2, 3
        sequence = a_sequence([1, 2, 3])
        drafter = LookupDrafter({0: sequence}.get)
        for number in range(30):
            sequence.token_ids += [new(number), 200 + number, 1, 2, 3]
            drafter.draft(a_round(), Verdict(), HIDDEN)
        asked = [drafter.draft(a_round(), Verdict(), HIDDEN).get(0) for _ in range(9)]
        confidences.append(next(drafts.confidences[0] for drafts in asked if drafts))

    assert confidences[0] > 0.75
    assert confidences[1] < 0.2


def test_a_sequence_whose_proposals_promise_little_is_looked_up_for_ever_more_seldom() -> None:
    new, loop = a_sequence(list(range(50))), a_sequence([1, 2, 3] * 20)
    found = {}
    for name, sequence in (("new", new), ("loop", loop)):
        asked: list[int] = []  # the sequence's length in each round that looked it up
        drafter = LookupDrafter({0: sequence}.get, wanted=noted_in(asked))
        for number in range(60):
            sequence.token_ids.append(1000 + number if name == "new" else 1 + len(sequence.token_ids) % 3)
            drafter.draft(a_round(), Verdict(), HIDDEN)
        found[name] = asked

    assert 1 <= sum(length > 50 + 20 for length in found["new"]) <= 6
    assert len(found["loop"]) == 60


def test_who_has_no_other_drafts_is_looked_up_for_in_every_round() -> None:
    sequence = a_sequence(list(range(50)))
    asked: list[int] = []
    drafter = LookupDrafter({0: sequence}.get, wanted=noted_in(asked), needed=lambda sequence: True)
    for number in range(20):
        sequence.token_ids.append(1000 + number)
        drafter.draft(a_round(), Verdict(), HIDDEN)

    assert asked == list(range(51, 71))


def noted_in(lengths: list[int]) -> Callable[[Sequence], bool]:
    """For `wanted`, which is asked in each round that looks a sequence up: notes the sequence's length, and agrees."""

    def wanted(sequence: Sequence) -> bool:
        lengths.append(len(sequence.token_ids))
        return True

    return wanted


def test_rates_follow_what_was_seen_by_length_of_match() -> None:
    own = SequenceAcceptance(MatchAcceptance(greedy=True))
    before = own.rates(2, 1)[0]
    for _ in range(200):
        own.observe(2, [7], [8])
        own.observe(25, [7, 7], [7, 7])

    assert own.rates(2, 1)[0] < 0.1 < before
    assert own.rates(25, 1)[0] > 0.9


def test_a_sequence_that_differs_from_the_others_is_known_by_its_own_past() -> None:
    engine = MatchAcceptance(greedy=False)
    right, wrong = SequenceAcceptance(engine), SequenceAcceptance(engine)
    for _ in range(30):
        right.observe(5, [7], [7])
        wrong.observe(5, [7], [8])

    assert right.rates(9, 2)[0] > 1.5 * wrong.rates(9, 2)[0]


def test_nothing_is_learned_of_drafts_behind_a_wrong_one() -> None:
    engine = MatchAcceptance(greedy=True)
    before = engine.rates(2, 3)

    SequenceAcceptance(engine).observe(2, [7, 7, 7], [8, 7, 7])

    after = engine.rates(2, 3)
    assert after[1:] == before[1:]
    assert after[0] < before[0]


def test_a_draft_that_stands_makes_the_next_match_longer() -> None:
    rates = MatchAcceptance(greedy=True).rates(2, 16)

    assert rates == sorted(rates)
    assert rates[0] < rates[1] < rates[-1]
    assert len(MatchAcceptance(greedy=True).rates(LONGEST, 16)) == 16
