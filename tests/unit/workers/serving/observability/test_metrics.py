from outrider.workers.serving.observability.metrics import (
    DEPRECATED,
    Increments,
    durations,
    gauges,
    speculation_gauges,
    totals,
)
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.counters import EngineCounters, ExpertFigures, SpeculationFigures


def test_a_total_is_published_as_what_it_gained() -> None:
    increments = Increments()

    assert [increments.of("rounds", total) for total in (3, 3, 10)] == [3, 0, 7]
    assert increments.of("position", 5, "0") == 5
    assert increments.of("position", 5, "1") == 5
    assert increments.of("position", 6, "0") == 1


def test_a_total_never_shrinks_what_was_published() -> None:
    increments = Increments()
    increments.of("rounds", 10)

    assert increments.of("rounds", 4) == 0


def test_names_are_the_ones_that_dashboards_know() -> None:
    counters = EngineCounters(running=1, waiting=2, kv_cache_usage=0.5, drafts=3, drafted=9, accepted=4)

    assert gauges(counters) == {
        "outrider_num_requests_running": 1,
        "outrider_num_requests_waiting": 2,
        "outrider_kv_cache_usage_perc": 0.5,
    }
    published = totals(counters)  # Ray adds the _total
    assert published["outrider_spec_decode_num_drafts"] == 3
    assert published["outrider_spec_decode_num_draft_tokens"] == 9
    assert published["outrider_spec_decode_num_accepted_tokens"] == 4
    assert {"outrider_prefix_cache_queries", "outrider_prefix_cache_hits"} <= set(published)


def test_what_became_of_experts_is_counted() -> None:
    published = totals(EngineCounters(experts=ExpertFigures(replacements=2, moves=5)))

    assert (published["outrider_expert_replacements"], published["outrider_expert_moves"]) == (2, 5)


def test_a_request_without_tokens_adds_to_the_latency_alone() -> None:
    assert durations(Observation(reason="error", latency_s=2.0)) == {"outrider_e2e_request_latency_seconds": 2.0}
    whole = Observation(reason="stop", latency_s=2.0, time_to_first_token_s=1.0, time_per_output_token_s=0.1)
    assert durations(whole) == {
        "outrider_time_to_first_token_seconds": 1.0,
        "outrider_request_time_per_output_token_seconds": 0.1,
        "outrider_e2e_request_latency_seconds": 2.0,
    }


SPECULATING = EngineCounters(
    drafts=4,
    drafted=10,
    accepted=6,
    speculation=SpeculationFigures(speedup=1.5, draft_depth=2.5, price=900.0, budget=4.0),
)


def test_each_figure_of_speculation_is_a_gauge() -> None:
    published = speculation_gauges(SPECULATING)

    assert {name: value for name, value in published.items() if name not in DEPRECATED} == {
        "outrider_spec_decode_speedup": 1.5,
        "outrider_spec_decode_draft_depth": 2.5,
        "outrider_spec_decode_acceptance_rate": 0.6,
        "outrider_spec_decode_mean_accepted_length": 2.5,
        "outrider_spec_decode_price_tokens_per_second": 900.0,
        "outrider_spec_decode_budget_rounds": 4.0,
        "outrider_spec_decode_disabled": 0.0,
    }


def test_drafting_that_is_disabled_for_some_rounds_is_published_as_disabled() -> None:
    disabled = EngineCounters(speculation=SpeculationFigures(disabled_rounds=41))

    assert speculation_gauges(disabled)["outrider_spec_decode_disabled"] == 1.0


def test_the_names_of_the_last_release_still_have_the_values_of_those_that_replace_them() -> None:
    published = speculation_gauges(SPECULATING)

    assert published["outrider_spec_decode_gain"] == 1.5
    assert published["outrider_spec_decode_ledger_rounds"] == 4.0
    assert published["outrider_spec_decode_stopped"] == 0.0


def test_before_the_first_draft_acceptance_is_zero() -> None:
    none = EngineCounters()

    assert (none.acceptance_rate, none.mean_accepted_length) == (0.0, 0.0)


def test_a_ranks_status_tells_how_speculation_does() -> None:
    figures = SpeculationFigures(speedup=1.5, disabled_rounds=3, disabled_reason="why", alarms={"drafter_failed": 2})
    experts = ExpertFigures(imbalance={3: 1.25}, replacements=1)
    status = RankStatus(state="ready", counters=EngineCounters(drafted=3, speculation=figures, experts=experts))

    assert RankStatus.from_json(status.to_json()) == status
