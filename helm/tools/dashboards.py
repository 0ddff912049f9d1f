"""The chart's Grafana dashboards, generated from the panels below. `python helm/tools/dashboards.py` writes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "outrider" / "files" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph: its title, unit, queries with their legends, and description."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str


def _share(part: str, whole: str) -> str:
    return f"sum(rate({part}[$__rate_interval])) / sum(rate({whole}[$__rate_interval]))"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket[$__rate_interval])))"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(share, metric), f"p{round(100 * share)}") for share in (0.5, 0.95, 0.99))


GATEWAY, ENGINE = "outrider_gateway_", "ray_outrider_"


def _each_replica(metric: str) -> tuple[tuple[str, str], ...]:
    return ((f"max by (replica) ({ENGINE}{metric})", "{{replica}}"),)


def _by_purpose(metric: str) -> tuple[tuple[str, str], ...]:
    """The mean over a stage's ranks, by purpose."""
    rate = f"avg by (replica, stage, purpose) (rate({ENGINE}{metric}[$__rate_interval]))"
    return ((rate, "{{replica}} stage {{stage}} {{purpose}}"),)


_DRAFTS = f"{ENGINE}spec_decode_num_draft_tokens_total"
_STAGE_BUSY = f"avg by (replica, stage) (rate({ENGINE}stage_busy_seconds_total[$__rate_interval]))"
_ROUNDS = _rate(f"{ENGINE}rounds_total", "replica")
_DRAFT_ROUNDS = f"{ENGINE}spec_decode_num_drafts_total"
_ACCEPTED = f"{ENGINE}spec_decode_num_accepted_tokens_total"

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "overview": (
        "outrider: overview",
        (
            Panel(
                "Ready replicas",
                "short",
                ((f"max({GATEWAY}ready_replicas)", "replicas"),),
                "Replicas that accept requests.",
            ),
            Panel(
                "Requests by status",
                "reqps",
                ((_rate(f"{GATEWAY}requests_total", "status"), "{{status}}"),),
                "ok, error (after the request was accepted), or the gRPC status.",
            ),
            Panel(
                "Live requests", "short", ((f"sum({GATEWAY}live_requests)", "live"),), "Requests that have not ended."
            ),
            Panel(
                "Time to first token, at the gateway",
                "s",
                _quantiles(f"{GATEWAY}time_to_first_token_seconds"),
                "From a request's arrival at the gateway.",
            ),
            Panel(
                "End-to-end latency, at the gateway",
                "s",
                _quantiles(f"{GATEWAY}e2e_request_latency_seconds"),
                "From a request's arrival at the gateway.",
            ),
            Panel(
                "Time per output token",
                "s",
                _quantiles(f"{ENGINE}request_time_per_output_token_seconds"),
                "Mean time between a request's tokens, after the first.",
            ),
            Panel(
                "Unauthorized calls",
                "reqps",
                ((_rate(f"{GATEWAY}refused_calls_total", "status"), "{{status}}"),),
                "Calls without a valid token, or whose token lacks the required role.",
            ),
            Panel(
                "Requests refused because of overload",
                "reqps",
                ((_rate(f"{GATEWAY}refused_requests_total", "cause"), "{{cause}}"),),
                "By the limit that was reached. wait and deadline: they would have started too late.",
            ),
            Panel(
                "Queued requests",
                "short",
                ((f"sum({GATEWAY}queued_requests)", "waiting"), (f"sum({GATEWAY}successor_waits)", "for a successor")),
                "At gateways. waiting: not sent to a replica yet. for a successor: their replica was lost.",
            ),
            Panel(
                "Requests resumed by clients",
                "reqps",
                ((f"sum(rate({GATEWAY}resumed_requests_total[$__rate_interval]))", "resumed"),),
                "Their gateway was lost or shut down.",
            ),
            Panel(
                "Event loop lag",
                "s",
                ((f"max by (instance) ({GATEWAY}event_loop_lag_seconds)", "{{instance}}"),),
                "The longest within the last minute. It delays every stream.",
            ),
            Panel(
                "Gateways connected to the controller",
                "short",
                (
                    (f"sum({GATEWAY}controller_connected)", "connected"),
                    (f"count({GATEWAY}controller_connected)", "all"),
                ),
                "Other gateways continue with the last routing table.",
            ),
            Panel(
                "Ended replicas",
                "short",
                ((f"max by (cause) (increase({GATEWAY}ended_replicas_total[$__rate_interval]))", "{{cause}}"),),
                "By cause. stalled: their rounds hung.",
            ),
            Panel(
                "Moved requests",
                "reqps",
                (
                    (f"sum(rate({GATEWAY}request_moves_total[$__rate_interval]))", "moves"),
                    (f"sum(rate({GATEWAY}quarantined_requests_total[$__rate_interval]))", "ended"),
                ),
                "moves: continued on another replica after theirs was lost. ended: two replicas in a row were lost.",
            ),
            Panel(
                "Generation and restarts of each replica",
                "short",
                (
                    (f"max by (replica) ({ENGINE}generation)", "{{replica}} generation"),
                    (f"max by (replica) ({ENGINE}restarts)", "{{replica}} restarts"),
                ),
                "If both increase, a replica failed and was restarted.",
            ),
            Panel(
                "Outputs by finish reason",
                "reqps",
                ((_rate(f"{ENGINE}request_success_total", "finished_reason"), "{{finished_reason}}"),),
                "stop, length or cancelled.",
            ),
        ),
    ),
    "speculation": (
        "outrider: speculation",
        (
            Panel(
                "Speed-up over no speculation",
                "short",
                _each_replica("spec_decode_speedup"),
                "Recent tokens/s relative to tokens/s without speculation. 0: unknown, as with a fixed depth.",
            ),
            Panel(
                "Acceptance rate",
                "percentunit",
                (
                    (_share(_ACCEPTED, _DRAFTS), "recent, all replicas"),
                    (f"max by (replica) ({ENGINE}spec_decode_acceptance_rate)", "{{replica}} since its start"),
                ),
                "Accepted / verified drafts.",
            ),
            Panel(
                "Mean accepted length",
                "short",
                (
                    (f"1 + {_share(_ACCEPTED, _DRAFT_ROUNDS)}", "recent, all replicas"),
                    (f"max by (replica) ({ENGINE}spec_decode_mean_accepted_length)", "{{replica}} since its start"),
                ),
                "Tokens per sequence and round with drafts.",
            ),
            Panel(
                "Accepted drafts by position",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_num_accepted_tokens_per_pos_total", "position"), "draft {{position}}"),),
                "Decreases with the position, since drafts after a rejected draft are rejected too.",
            ),
            Panel(
                "Verified and accepted drafts",
                "ops",
                (
                    (_rate(_DRAFTS, "replica"), "{{replica}} verified"),
                    (_rate(_ACCEPTED, "replica"), "{{replica}} accepted"),
                ),
                "The difference is wasted computation.",
            ),
            Panel(
                "Rounds", "ops", ((_rate(f"{ENGINE}rounds_total", "replica"), "{{replica}}"),), "Verification rounds."
            ),
            Panel(
                "Draft depth",
                "short",
                _each_replica("spec_decode_draft_depth"),
                "Recent verified drafts per sequence and round, including rounds without drafts.",
            ),
            Panel(
                "Draft depth of rounds with drafts",
                "short",
                ((_share(_DRAFTS, _DRAFT_ROUNDS), "drafts"),),
                "Verified drafts per sequence and round, without rounds that have no drafts.",
            ),
            Panel(
                "Price of time",
                "tokens/s",
                _each_replica("spec_decode_price_tokens_per_second"),
                "Minimum tokens per second of time spent on drafts.",
            ),
            Panel(
                "Budget",
                "short",
                _each_replica("spec_decode_budget_rounds"),
                "How many plain rounds of time drafting may still lose. At 0, drafting is disabled for a while.",
            ),
            Panel(
                "Drafting disabled",
                "short",
                _each_replica("spec_decode_disabled"),
                "1 while drafting is disabled. `outrider status` shows why, and for how many rounds.",
            ),
            Panel(
                "Drafter alarms",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_alarms_total", "replica, alarm"), "{{replica}} {{alarm}}"),),
                "Normally none. The leader's log has the probable cause.",
            ),
        ),
    ),
    "experts": (
        "outrider: experts",
        (
            Panel(
                "Expert imbalance by layer",
                "short",
                ((f"max by (replica, layer) ({ENGINE}expert_imbalance)", "{{replica}} layer {{layer}}"),),
                "Recent rows of the heaviest rank / mean of all ranks. 1 is balanced; ranks wait for the heaviest.",
            ),
            Panel(
                "Expert imbalance, all layers",
                "short",
                (
                    (f"avg by (replica) ({ENGINE}expert_imbalance)", "{{replica}} mean"),
                    (f"max by (replica) ({ENGINE}expert_imbalance)", "{{replica}} worst layer"),
                ),
                "Recent load of the heaviest rank / mean load. enable_eplb keeps it low.",
            ),
            Panel(
                "Layers rebalanced",
                "ops",
                ((_rate(f"{ENGINE}expert_replacements_total", "replica"), "{{replica}}"),),
                "Layers whose experts moved to other ranks.",
            ),
            Panel(
                "Experts moved",
                "ops",
                ((_rate(f"{ENGINE}expert_moves_total", "replica"), "{{replica}}"),),
                "Experts that a rank loaded during rebalancing.",
            ),
        ),
    ),
    "capacity": (
        "outrider: capacity",
        (
            Panel(
                "KV cache usage",
                "percentunit",
                ((f"max by (replica) ({ENGINE}kv_cache_usage_perc)", "{{replica}}"),),
                "Share of the cache's blocks in use.",
            ),
            Panel(
                "Running sequences",
                "short",
                ((f"sum by (replica) ({ENGINE}num_requests_running)", "{{replica}}"),),
                "Sequences that hold cache blocks.",
            ),
            Panel(
                "Waiting sequences",
                "short",
                ((f"sum by (replica) ({ENGINE}num_requests_waiting)", "{{replica}}"),),
                "Sequences that wait for cache blocks.",
            ),
            Panel(
                "Waiting prompt tokens",
                "short",
                ((f"sum({GATEWAY}queued_tokens)", "tokens"),),
                "Prompt tokens of requests without a first token yet.",
            ),
            Panel(
                "Busy stages",
                "percentunit",
                ((_STAGE_BUSY, "{{replica}} stage {{stage}}"),),
                "Share of the time in which a stage computes, averaged over its ranks.",
            ),
            Panel(
                "Round time by stage",
                "s",
                ((f"{_STAGE_BUSY} / on (replica) group_left () {_ROUNDS}", "{{replica}} stage {{stage}}"),),
                "Computation per round, including drafts. The slowest stage limits throughput.",
            ),
            Panel(
                "Prefix cache hit rate",
                "percentunit",
                ((_share(f"{ENGINE}prefix_cache_hits_total", f"{ENGINE}prefix_cache_queries_total"), "hits"),),
                "Share of prompt tokens found in the prefix cache.",
            ),
            Panel(
                "Time to first token, at the engine",
                "s",
                _quantiles(f"{ENGINE}time_to_first_token_seconds"),
                "From submission to the leader.",
            ),
            Panel(
                "End-to-end latency, at the engine",
                "s",
                _quantiles(f"{ENGINE}e2e_request_latency_seconds"),
                "From submission to the leader.",
            ),
            Panel(
                "Queue time",
                "s",
                _quantiles(f"{ENGINE}request_queue_time_seconds"),
                "From submission to the leader to the first round. If it grows, add a replica.",
            ),
            Panel(
                "Time in collectives",
                "percentunit",
                _by_purpose("collective_seconds_total"),
                "Share of the time in which a stage's ranks communicate or wait for each other.",
            ),
            Panel(
                "Bytes in collectives",
                "Bps",
                _by_purpose("collective_bytes_total"),
                "Bytes that a stage's ranks send to each other.",
            ),
            Panel("Collectives", "ops", _by_purpose("collectives_total"), "Collectives among a stage's ranks."),
        ),
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    title, panels = DASHBOARDS[name]
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": f"outrider-{name}",
        "title": title,
        "tags": ["outrider"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


def as_json(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(as_json(each))
