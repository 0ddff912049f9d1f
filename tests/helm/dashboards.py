"""The chart's Grafana dashboards, made from the panels below. `python tests/helm/dashboards.py` writes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "outrider" / "files" / "dashboards"
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
                "Drafts accepted", "percentunit", ((_share(_ACCEPTED, _DRAFTS), "accepted"),), "Of the drafts verified."
            ),
            Panel(
                "Drafts accepted, by place",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_num_accepted_tokens_per_pos_total", "position"), "draft {{position}}"),),
                "Falls with the place, for a miss ends a draft.",
            ),
            Panel(
                "Drafts verified in a sequence's round",
                "short",
                ((_share(_DRAFTS, f"{ENGINE}spec_decode_num_drafts_total"), "drafts"),),
                "The depth in force, of the rounds that drafted.",
            ),
            Panel(
                "Drafts verified and accepted",
                "ops",
                (
                    (_rate(_DRAFTS, "replica"), "{{replica}} verified"),
                    (_rate(_ACCEPTED, "replica"), "{{replica}} accepted"),
                ),
                "What lies between is work that came to nothing.",
            ),
            Panel(
                "Rounds", "ops", ((_rate(f"{ENGINE}rounds_total", "replica"), "{{replica}}"),), "Verification rounds."
            ),
            Panel(
                "Depth of late",
                "short",
                _each_replica("spec_decode_draft_depth"),
                "Drafts verified a sequence and round, those without drafts too.",
            ),
            Panel(
                "Price of time",
                "tokens/s",
                _each_replica("spec_decode_price_tokens_per_second"),
                "Tokens that a second is worth: what a draft must earn.",
            ),
            Panel(
                "Speed over that without speculation",
                "short",
                _each_replica("spec_decode_gain"),
                "As modelled from measured rounds; 1 is none gained.",
            ),
            Panel(
                "Rounds that speculation may still lose",
                "short",
                _each_replica("spec_decode_ledger_rounds"),
                "What bounds its loss; at nothing it stops.",
            ),
            Panel(
                "Speculation stopped",
                "short",
                _each_replica("spec_decode_stopped"),
                "1 while nothing is drafted, because it had lost too much.",
            ),
            Panel(
                "Error of forecasts",
                "percentunit",
                _each_replica("spec_decode_forecast_error"),
                "Mean share by which rounds took another time than foreseen.",
            ),
            Panel(
                "Signs of a broken drafter",
                "ops",
                ((_rate(f"{ENGINE}spec_decode_alarms_total", "replica, alarm"), "{{replica}} {{alarm}}"),),
                "None is the rule; the leader's log says more.",
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
