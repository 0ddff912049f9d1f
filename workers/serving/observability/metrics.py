"""Defines every metric of an engine, and publishes them through Ray from a thread.

Names are `outrider_` plus vLLM's metric names; Ray adds the prefix `ray_`, and `_total` to counters. Every rank
publishes its stage's busy time and its collectives; the leader publishes the rest.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from ray.util.metrics import Counter, Gauge, Histogram

from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.counters import EngineCounters

PUBLISH_EVERY_S = 1.0
_TAGS = ("replica",)


class Increments:
    """Turns running totals into increments since the previous call."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def of(self, name: str, total: float, label: str = "") -> float:
        gained = max(0.0, total - self._seen.get((name, label), 0.0))
        self._seen[name, label] = total
        return gained


def totals(counters: EngineCounters) -> dict[str, float]:
    """Counters without labels, by metric name."""
    return {
        "outrider_rounds": counters.rounds,
        "outrider_prefix_cache_queries": counters.prefix_queries,
        "outrider_prefix_cache_hits": counters.prefix_hits,
        "outrider_spec_decode_num_drafts": counters.drafts,
        "outrider_spec_decode_num_draft_tokens": counters.drafted,
        "outrider_spec_decode_num_accepted_tokens": counters.accepted,
        "outrider_expert_replacements": counters.experts.replacements,
        "outrider_expert_moves": counters.experts.moves,
    }


def gauges(counters: EngineCounters) -> dict[str, float]:
    return {
        "outrider_num_requests_running": counters.running,
        "outrider_num_requests_waiting": counters.waiting,
        "outrider_kv_cache_usage_perc": counters.kv_cache_usage,
    }


def speculation_gauges(counters: EngineCounters) -> dict[str, float]:
    """Gauges of speculation, under their current and their deprecated names."""
    figures = counters.speculation
    named = {
        "outrider_spec_decode_speedup": figures.speedup,
        "outrider_spec_decode_draft_depth": figures.draft_depth,
        "outrider_spec_decode_acceptance_rate": counters.acceptance_rate,
        "outrider_spec_decode_mean_accepted_length": counters.mean_accepted_length,
        "outrider_spec_decode_price_tokens_per_second": figures.price,
        "outrider_spec_decode_budget_rounds": figures.budget,
        "outrider_spec_decode_disabled": float(figures.disabled_rounds > 0),
    }
    return named | {old: named[new] for old, new in DEPRECATED.items()}


def durations(observation: Observation) -> dict[str, float]:
    """One request's samples for the histograms."""
    measured = {
        "outrider_request_queue_time_seconds": observation.queued_s,
        "outrider_time_to_first_token_seconds": observation.time_to_first_token_s,
        "outrider_request_time_per_output_token_seconds": observation.time_per_output_token_s,
        "outrider_e2e_request_latency_seconds": observation.latency_s,
    }
    return {name: seconds for name, seconds in measured.items() if seconds is not None}


_DURATIONS: Mapping[str, str] = {
    "outrider_request_queue_time_seconds": "From a request's submission to its first round.",
    "outrider_time_to_first_token_seconds": "From a request's submission to its first token.",
    "outrider_request_time_per_output_token_seconds": "Between a request's tokens, after the first.",
    "outrider_e2e_request_latency_seconds": "From a request's submission to its end.",
}
DEPRECATED: Mapping[str, str] = {  # old name -> new name; the old ones are kept for one release
    "outrider_spec_decode_gain": "outrider_spec_decode_speedup",
    "outrider_spec_decode_ledger_rounds": "outrider_spec_decode_budget_rounds",
    "outrider_spec_decode_stopped": "outrider_spec_decode_disabled",
}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DESCRIPTIONS: Mapping[str, str] = {
    "outrider_rounds": "Verification rounds finished.",
    "outrider_prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "outrider_prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "outrider_spec_decode_num_drafts": "Rounds of one sequence that verified at least one draft.",
    "outrider_spec_decode_num_draft_tokens": "Drafts verified.",
    "outrider_spec_decode_num_accepted_tokens": "Drafts accepted.",
    "outrider_expert_replacements": "Times that the experts of a layer were placed anew.",
    "outrider_expert_moves": "Experts that ranks loaded because of that.",
    "outrider_num_requests_running": "Sequences that hold cache blocks.",
    "outrider_num_requests_waiting": "Sequences that wait for cache blocks.",
    "outrider_kv_cache_usage_perc": "Share of the cache's blocks in use, 0..1.",
    "outrider_spec_decode_speedup": "Recent tokens/s over the tokens/s without speculation; 0: not known.",
    "outrider_spec_decode_draft_depth": "Recent mean number of drafts verified for each sequence in each round.",
    "outrider_spec_decode_acceptance_rate": "Accepted drafts over verified drafts since the engine started.",
    "outrider_spec_decode_mean_accepted_length": (
        "Mean tokens of a sequence in a round that verifies drafts of it, since the engine started."
    ),
    "outrider_spec_decode_price_tokens_per_second": "Tokens/s that time spent on drafts must earn to be worthwhile.",
    "outrider_spec_decode_budget_rounds": "Rounds without speculation whose time drafting may still lose.",
    "outrider_spec_decode_disabled": "1 while drafting is disabled because it does not pay, else 0.",
    **{old: f"deprecated: use {new}." for old, new in DEPRECATED.items()},
    "outrider_generation": "The replica's current generation.",
    "outrider_restarts": "Times that a failed gang of the replica was replaced by a new one.",
}


_TRAFFIC: Mapping[str, str] = {
    "outrider_collectives": "Collectives among the ranks of a stage, by stage and purpose.",
    "outrider_collective_bytes": "Bytes passed to these collectives.",
    "outrider_collective_seconds": "Seconds spent in these collectives, including waiting.",
}


class Published(Protocol):
    """The part of a rank that MetricsPublisher reads."""

    def status(self) -> RankStatus: ...
    def take_observations(self) -> list[Observation]: ...


class MetricsPublisher:
    """Publishes one rank's status as Ray metrics."""

    def __init__(self, replica: str, generation: int, restarts: int, *, stage: int, leads: bool) -> None:
        self._tags = {"replica": replica}
        self._stage, self._leads = str(stage), leads
        self._gang: dict[str, float] = {"outrider_generation": generation, "outrider_restarts": restarts}
        self._increments = Increments()
        empty = EngineCounters()
        self._counters = {name: Counter(name, _DESCRIPTIONS[name], _TAGS) for name in totals(empty)}
        named = (*gauges(empty), *speculation_gauges(empty), *self._gang)
        self._gauges = {name: Gauge(name, _DESCRIPTIONS[name], _TAGS) for name in named}
        self._alarms = Counter(
            "outrider_spec_decode_alarms", "Alarms that a drafter may be broken, by alarm.", (*_TAGS, "alarm")
        )
        self._per_position = Counter(
            "outrider_spec_decode_num_accepted_tokens_per_pos",
            "Drafts accepted, by position.",
            (*_TAGS, "position"),
        )
        self._stage_seconds = Counter(
            "outrider_stage_busy_seconds", "Seconds spent computing rounds, by stage.", (*_TAGS, "stage")
        )
        self._traffic = {
            name: Counter(name, description, (*_TAGS, "stage", "purpose")) for name, description in _TRAFFIC.items()
        }
        self._requests = Counter(
            "outrider_request_success", "Requests that ended, by finish reason.", (*_TAGS, "finished_reason")
        )
        self._histograms = {
            name: Histogram(name, description, boundaries=list(_SECONDS), tag_keys=_TAGS)
            for name, description in _DURATIONS.items()
        }
        self._imbalance = Gauge(
            "outrider_expert_imbalance",
            "Recent work of the rank with the most expert work over the mean of all ranks, by layer.",
            (*_TAGS, "layer"),
        )

    def run(self, rank: Published, stop: threading.Event) -> None:
        while not stop.wait(PUBLISH_EVERY_S):
            self.publish(rank.status(), rank.take_observations())

    def publish(self, status: RankStatus, observations: Sequence[Observation]) -> None:
        for observation in observations:
            self._requests.inc(1, {**self._tags, "finished_reason": observation.reason})
            for name, seconds in durations(observation).items():
                self._histograms[name].observe(seconds, self._tags)
        self._add(self._stage_seconds, "stage", status.busy_s, self._stage)
        self._publish_traffic(status.traffic)
        if self._leads:
            self._publish_engine(status.counters)

    def _publish_engine(self, counters: EngineCounters) -> None:
        for name, value in (self._gang | gauges(counters) | speculation_gauges(counters)).items():
            self._gauges[name].set(value, self._tags)
        for layer, found in counters.experts.imbalance.items():
            self._imbalance.set(found, {**self._tags, "layer": str(layer)})
        for alarm, count in counters.speculation.alarms.items():
            self._add(self._alarms, "alarm", count, alarm)
        for name, total in totals(counters).items():
            self._add(self._counters[name], name, total)
        for position, total in enumerate(counters.accepted_per_position):
            self._add(self._per_position, "position", total, str(position))

    def _publish_traffic(self, traffic: Mapping[str, Traffic]) -> None:
        for purpose, carried in traffic.items():
            tags = {**self._tags, "stage": self._stage, "purpose": purpose}
            totals = (carried.count, carried.bytes, carried.seconds)
            for (name, counter), total in zip(self._traffic.items(), totals, strict=True):
                gained = self._increments.of(name, total, purpose)
                if gained > 0:
                    counter.inc(gained, tags)

    def _add(self, counter: Counter, tag: str, total: float, label: str = "") -> None:
        gained = self._increments.of(tag, total, label)
        if gained > 0:
            counter.inc(gained, {**self._tags, tag: label} if label else self._tags)
