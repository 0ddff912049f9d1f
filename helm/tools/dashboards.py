"""The chart's Grafana dashboards, made from the panels below. `python helm/tools/dashboards.py` writes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "outrider" / "files" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph: what it answers, in which unit, and its queries with their legends."""

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
    """A mean over a stage's ranks."""
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
                "Replicas that take requests.",
            ),
            Panel(
                "Requests by how they ended",
                "reqps",
                ((_rate(f"{GATEWAY}requests_total", "status"), "{{status}}"),),
                "ok, error (after acceptance), or the gRPC status.",
            ),
            Panel(
                "Live requests", "short", ((f"sum({GATEWAY}live_requests)", "live"),), "Requests that have not ended."
            ),
            Panel(
                "Time to first token, as clients see it",
                "s",
                _quantiles(f"{GATEWAY}time_to_first_token_seconds"),
                "From a request's arrival at the gateway.",
            ),
            Panel(
                "Time to the end, as clients see it",
                "s",
                _quantiles(f"{GATEWAY}e2e_request_latency_seconds"),
                "From a request's arrival at the gateway.",
            ),
            Panel(
                "Time per output token",
                "s",
                _quantiles(f"{ENGINE}request_time_per_output_token_seconds"),
                "Between a request's tokens, after the first.",
            ),
            Panel(
                "Calls that were not let in",
                "reqps",
                ((_rate(f"{GATEWAY}refused_calls_total", "status"), "{{status}}"),),
                "Without a valid token, or without the role.",
            ),
            Panel(
                "Requests refused for lack of room",
                "reqps",
                ((_rate(f"{GATEWAY}refused_requests_total", "cause"), "{{cause}}"),),
                "By the limit that they met; wait and deadline: their turn would have come too late.",
            ),
            Panel(
                "Requests that wait for their turn",
                "short",
                ((f"sum({GATEWAY}queued_requests)", "waiting"), (f"sum({GATEWAY}successor_waits)", "for a successor")),
                "At gateways: for a place on a replica, or for a replica in the place of a lost one.",
            ),
            Panel(
                "Requests that clients went on with",
                "reqps",
                ((f"sum(rate({GATEWAY}resumed_requests_total[$__rate_interval]))", "resumed"),),
                "Their gateway was lost, or left.",
            ),
            Panel(
                "Delay of the event loop",
                "s",
                ((f"max by (instance) ({GATEWAY}event_loop_lag_seconds)", "{{instance}}"),),
                "The longest of the last minute: it holds up every stream.",
            ),
            Panel(
                "Gateways that hear the controller",
                "short",
                (
                    (f"sum({GATEWAY}controller_connected)", "connected"),
                    (f"count({GATEWAY}controller_connected)", "all"),
                ),
                "Those that do not serve on by the last table.",
            ),
            Panel(
                "Replicas that ended",
                "short",
                ((f"max by (cause) (increase({GATEWAY}ended_replicas_total[$__rate_interval]))", "{{cause}}"),),
                "stalled: their rounds hung.",
            ),
            Panel(
                "Requests that moved",
                "reqps",
                (
                    (f"sum(rate({GATEWAY}request_moves_total[$__rate_interval]))", "moves"),
                    (f"sum(rate({GATEWAY}quarantined_requests_total[$__rate_interval]))", "ended"),
                ),
                "Their replica was lost, and they went on at another, with the same text; ended: two in a row were.",
            ),
            Panel(
                "Generation and restarts of each replica",
                "short",
                (
                    (f"max by (replica) ({ENGINE}generation)", "{{replica}} generation"),
                    (f"max by (replica) ({ENGINE}restarts)", "{{replica}} restarts"),
                ),
                "A step of both is a replica that failed and was rebuilt.",
            ),
            Panel(
                "How requests finished",
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
                "Recent tokens/s over the tokens/s without speculation. 0: not known, as with a fixed depth.",
            ),
            Panel(
                "Acceptance rate",
                "percentunit",
                (
                    (_share(_ACCEPTED, _DRAFTS), "recent, all replicas"),
                    (f"max by (replica) ({ENGINE}spec_decode_acceptance_rate)", "{{replica}} since its start"),
                ),
                "Accepted drafts over verified drafts.",
            ),
            Panel(
                "Mean accepted length",
                "short",
                (
                    (f"1 + {_share(_ACCEPTED, _DRAFT_ROUNDS)}", "recent, all replicas"),
                    (f"max by (replica) ({ENGINE}spec_decode_mean_accepted_length)", "{{replica}} since its start"),
                ),
                "Tokens of a sequence in a round that verifies drafts of it.",
            ),
            Panel(
                "Accepted drafts by position",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_num_accepted_tokens_per_pos_total", "position"), "draft {{position}}"),),
                "Falls with the position: a rejected draft ends its sequence's drafts.",
            ),
            Panel(
                "Verified and accepted drafts",
                "ops",
                (
                    (_rate(_DRAFTS, "replica"), "{{replica}} verified"),
                    (_rate(_ACCEPTED, "replica"), "{{replica}} accepted"),
                ),
                "The difference is computed and thrown away.",
            ),
            Panel(
                "Rounds", "ops", ((_rate(f"{ENGINE}rounds_total", "replica"), "{{replica}}"),), "Verification rounds."
            ),
            Panel(
                "Draft depth",
                "short",
                _each_replica("spec_decode_draft_depth"),
                "Recent mean number of drafts verified for each sequence in each round, with or without drafts.",
            ),
            Panel(
                "Draft depth of rounds with drafts",
                "short",
                ((_share(_DRAFTS, _DRAFT_ROUNDS), "drafts"),),
                "Drafts verified for a sequence in a round that verifies any.",
            ),
            Panel(
                "Price of a second",
                "tokens/s",
                _each_replica("spec_decode_price_tokens_per_second"),
                "Tokens that a second must bring to be worth spending on drafts.",
            ),
            Panel(
                "Budget",
                "short",
                _each_replica("spec_decode_budget_rounds"),
                "Rounds without speculation whose time drafting may still lose. At 0 drafting is disabled for a while.",
            ),
            Panel(
                "Drafting disabled",
                "short",
                _each_replica("spec_decode_disabled"),
                "1 while drafting is disabled. `outrider status` says why, and for how many rounds.",
            ),
            Panel(
                "Signs of a broken drafter",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_alarms_total", "replica, alarm"), "{{replica}} {{alarm}}"),),
                "Normally none. The leader's log says what is likely wrong.",
            ),
        ),
    ),
    "experts": (
        "outrider: experts",
        (
            Panel(
                "Heaviest rank over the mean, by layer",
                "short",
                ((f"max by (replica, layer) ({ENGINE}expert_imbalance)", "{{replica}} layer {{layer}}"),),
                "Of the rows that each rank's experts took of late. 1 is even; the others wait for the heaviest.",
            ),
            Panel(
                "Heaviest rank over the mean, all layers",
                "short",
                (
                    (f"avg by (replica) ({ENGINE}expert_imbalance)", "{{replica}} mean"),
                    (f"max by (replica) ({ENGINE}expert_imbalance)", "{{replica}} worst layer"),
                ),
                "What enable_eplb keeps low.",
            ),
            Panel(
                "Layers placed anew",
                "ops",
                ((_rate(f"{ENGINE}expert_replacements_total", "replica"), "{{replica}}"),),
                "Their experts went to other ranks.",
            ),
            Panel(
                "Experts moved",
                "ops",
                ((_rate(f"{ENGINE}expert_moves_total", "replica"), "{{replica}}"),),
                "Read by a rank that had not held them.",
            ),
        ),
    ),
    "capacity": (
        "outrider: capacity",
        (
            Panel(
                "Cache in use",
                "percentunit",
                ((f"max by (replica) ({ENGINE}kv_cache_usage_perc)", "{{replica}}"),),
                "Share of the cache's blocks.",
            ),
            Panel(
                "Sequences that run",
                "short",
                ((f"sum by (replica) ({ENGINE}num_requests_running)", "{{replica}}"),),
                "They hold cache blocks.",
            ),
            Panel(
                "Sequences that wait",
                "short",
                ((f"sum by (replica) ({ENGINE}num_requests_waiting)", "{{replica}}"),),
                "For cache blocks.",
            ),
            Panel(
                "Prompt tokens that wait",
                "short",
                ((f"sum({GATEWAY}queued_tokens)", "tokens"),),
                "Of requests without a first token yet.",
            ),
            Panel(
                "Busy stages",
                "percentunit",
                ((_STAGE_BUSY, "{{replica}} stage {{stage}}"),),
                "Share of the time in which a stage computes, as its ranks have it on average.",
            ),
            Panel(
                "Time of a round, by stage",
                "s",
                ((f"{_STAGE_BUSY} / on (replica) group_left () {_ROUNDS}", "{{replica}} stage {{stage}}"),),
                "That the stage computes for it, drafts included. The slowest stage sets the pace.",
            ),
            Panel(
                "Prompt tokens found in the prefix cache",
                "percentunit",
                ((_share(f"{ENGINE}prefix_cache_hits_total", f"{ENGINE}prefix_cache_queries_total"), "hits"),),
                "Of those looked up.",
            ),
            Panel(
                "Time to first token, as the engine sees it",
                "s",
                _quantiles(f"{ENGINE}time_to_first_token_seconds"),
                "From submission to the leader.",
            ),
            Panel(
                "Time to the end, as the engine sees it",
                "s",
                _quantiles(f"{ENGINE}e2e_request_latency_seconds"),
                "From submission to the leader.",
            ),
            Panel(
                "Time in the queue",
                "s",
                _quantiles(f"{ENGINE}request_queue_time_seconds"),
                "From submission to the leader to the first round. Where it grows, a replica more would help.",
            ),
            Panel(
                "Time in collectives",
                "percentunit",
                _by_purpose("collective_seconds_total"),
                "Share of the time in which a stage's ranks exchange, or wait for each other.",
            ),
            Panel(
                "Bytes in collectives",
                "Bps",
                _by_purpose("collective_bytes_total"),
                "What a stage's ranks give to each other.",
            ),
            Panel("Collectives", "ops", _by_purpose("collectives_total"), "Exchanges among a stage's ranks."),
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
