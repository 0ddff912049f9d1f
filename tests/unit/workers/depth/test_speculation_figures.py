"""What the depth policy shows of itself, round by round."""

from outrider.workers.depth.budget import PROBE_WAIT
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.types.counters import SpeculationFigures
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import MTP, SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import RUNNING, Round, Verdict, ints
from outrider.workers.types.rounds.sequence import Sequence

PLAIN_S, DRAFT_S, ROW_S = 0.001, 0.002, 0.001


class Play:
    """One sequence whose drafts are never accepted, and take longer than a round."""

    def __init__(self, speculation: str | int) -> None:
        self.policy = DepthPolicy(speculation)
        request = Request(request_id="r", prompt_token_ids=(3, 4), params=SamplingParams(), seed=0)
        sequence = Sequence(
            sequence_id=0, request=request, output_index=0, token_ids=[3, 4], limit=10_000, draft_ceiling=16
        )
        self.policy.admit(sequence, 1)
        self._drafts = 0  # that the next round verifies

    def round(self) -> SpeculationFigures:
        plan = self.policy.plans.get(0)
        depth, rows = plan.depth if plan is not None else 0, 1 + self._drafts
        round = Round(
            sequence_ids=ints([0]), query_offsets=ints([0, rows]), token_ids=ints([5] * rows), starts=ints([9]),
            sample_counts=ints([rows]), draft_steps=ints([depth]), follows=ints([1]), followed_from=ints([1]),
        )  # fmt: skip
        verdict = Verdict(
            token_offsets=ints([0, 1]), token_ids=ints([5]), accepted_rows=ints([1]), drafts_accepted=ints([0]),
            finish=ints([RUNNING]),
        )  # fmt: skip
        made = {0: Drafts([5] * depth, [3.0] * depth, MTP)} if depth else {}
        verified = self.policy.observe(round, verdict, PLAIN_S + ROW_S * self._drafts, DRAFT_S * depth, made)
        self._drafts = len(verified.get(0, []))
        return self.policy.figures


def test_while_drafting_is_disabled_the_rounds_that_remain_count_down_and_the_reason_stays() -> None:
    play = Play("auto")
    disabled = next(figures for _ in range(2000) if (figures := play.round()).disabled_rounds)

    assert disabled.disabled_rounds == PROBE_WAIT
    for remaining in range(disabled.disabled_rounds - 1, 0, -1):
        figures = play.round()
        assert (figures.disabled_rounds, figures.disabled_reason) == (remaining, disabled.disabled_reason)
    assert disabled.disabled_reason
    enabled = play.round()
    assert (enabled.disabled_rounds, enabled.disabled_reason) == (0, "")


def test_of_a_fixed_depth_the_speed_up_the_price_and_the_budget_are_not_known() -> None:
    play = Play(2)

    figures = [play.round() for _ in range(50)][-1]

    assert figures.draft_depth > 1.5
    assert (figures.speedup, figures.price, figures.budget, figures.disabled_rounds) == (0.0, 0.0, 0.0, 0)
