"""What an engine publishes, as a scrape of Ray's metrics port shows it."""

import time

import pytest
from distributed.scraping import samples_of

from outrider.workers.serving.observability.metrics import MetricsPublisher
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.counters import EngineCounters, SpeculationFigures

Samples = dict[tuple[str, str], float]
OWN_LABELS = ("position", "stage", "finished_reason", "alarm")


def scraped(replica: str) -> Samples:
    """A replica's samples but for buckets, by name and by its own label's value ("" without one)."""
    return {
        (sample.name, next((sample.labels[label] for label in OWN_LABELS if label in sample.labels), "")): sample.value
        for sample in samples_of(replica)
        if "le" not in sample.labels
    }


def scraped_once_it_has(replica: str, *key: str) -> Samples:
    """With the sample that was published last."""
    until = time.monotonic() + 20
    while key not in (samples := scraped(replica)):
        assert time.monotonic() < until, samples
        time.sleep(0.2)
    return samples


@pytest.mark.usefixtures("ray_address")
def test_a_leaders_totals_gauges_and_requests_reach_ray() -> None:
    publisher = MetricsPublisher("leads", 3, 2, stage=0, leads=True)
    counters = EngineCounters(rounds=4, running=9, drafted=8, accepted=4, accepted_per_position=[3, 1])
    stopped = Observation(reason="stop", latency_s=2.0, time_to_first_token_s=1.0)

    publisher.publish(
        RankStatus(busy_s=1.5, counters=counters), [stopped, stopped, Observation(reason="error", latency_s=5)]
    )
    speculation = SpeculationFigures(speedup=1.5, alarms={"position_dead": 2, "cache_stale": 0})
    counters = EngineCounters(
        rounds=7, running=2, drafted=9, accepted=6, accepted_per_position=[4, 1, 1], speculation=speculation
    )
    publisher.publish(RankStatus(busy_s=2.25, counters=counters), [stopped])

    per_position = "ray_outrider_spec_decode_num_accepted_tokens_per_pos_total"
    requests = "ray_outrider_request_success_total"
    samples = scraped_once_it_has("leads", per_position, "2")
    assert samples["ray_outrider_rounds_total", ""] == 7
    assert samples["ray_outrider_spec_decode_alarms_total", "position_dead"] == 2
    assert [samples[per_position, place] for place in "012"] == [4, 1, 1]
    assert [samples[requests, reason] for reason in ("stop", "error")] == [3, 1]
    assert samples["ray_outrider_stage_busy_seconds_total", "0"] == 2.25
    assert samples["ray_outrider_spec_decode_num_draft_tokens_total", ""] == 9
    assert samples["ray_outrider_spec_decode_num_accepted_tokens_total", ""] == 6
    assert samples["ray_outrider_spec_decode_speedup", ""] == samples["ray_outrider_spec_decode_gain", ""] == 1.5
    assert samples["ray_outrider_num_requests_running", ""] == 2
    assert samples["ray_outrider_generation", ""] == 3
    assert samples["ray_outrider_restarts", ""] == 2
    assert samples["ray_outrider_e2e_request_latency_seconds_count", ""] == 4
    assert samples["ray_outrider_time_to_first_token_seconds_count", ""] == 3


@pytest.mark.usefixtures("ray_address")
def test_a_follower_publishes_its_stages_time_and_nothing_of_the_engine() -> None:
    publisher = MetricsPublisher("follows", 3, 2, stage=1, leads=False)

    publisher.publish(RankStatus(busy_s=1.5, counters=EngineCounters(rounds=4)), [])

    samples = scraped_once_it_has("follows", "ray_outrider_stage_busy_seconds_total", "1")
    assert samples == {("ray_outrider_stage_busy_seconds_total", "1"): 1.5}
