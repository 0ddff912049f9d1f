"""The planner's predictions against figures that others published for DeepSeek-V3/R1.

    python benchmarks/parallel/plan_predictions.py

Each row's conditions are those that its source states; what a source does not state is said in `assumed`. The
efficiencies come from single kernels and links (cluster/planning/efficiency.py), not from these rows. Writes
results/planner.json, and prints the tables of docs/planning.md.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.results import save
from benchmarks.reporting.tables import Table
from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.search import Objective, search
from outrider.cluster.planning.split import Split
from outrider.cluster.planning.timing import Clock, QueryRows
from outrider.workers.types.model.model_shapes import Shapes

ROWS = Path(__file__).with_name("plan_published.json")
SHAPES = Shapes.of(load_shape("deepseek-r1"))
SERVERS = Efficiency(  # other servers: 20 small kernels a layer, all in CUDA graphs, assumed
    dense_launches=20,
    moe_launches=20,
    dispatch_launches=0,
    peer_dispatch_launches=0,
    eager_launch_s=Efficiency().launch_s,
)
ALLOWED = 0.25
SHAKEN = (
    "weight_bandwidth",
    "linear_flops",
    "cache_bandwidth",
    "attention_flops",
    "link",
    "network",
    "exchange_latency_s",
    "launch_s",
    "expert_imbalance",
)


class Published(NamedTuple):
    """A figure of a whole server: `unit` names what is compared."""

    name: str
    gpu: str
    nodes: int
    gpus_per_node: int
    sizes: dict[str, int]
    workload: dict[str, Any]
    unit: str
    value: float
    source: str
    assumed: str
    required: bool


def published() -> list[Published]:
    return [Published(**row) for row in json.loads(ROWS.read_text())["speeds"]]


UNITS: dict[str, Callable[[Candidate], float]] = {
    "tokens/s a node": lambda plan: plan.tokens_per_s_per_gpu * plan.fleet.gpus_per_node,
    "tokens/s a GPU": lambda plan: plan.tokens_per_s_per_gpu,
    "ms a token": lambda plan: plan.token_s * 1e3,
}


def candidate(row: Published, efficiency: Efficiency) -> Candidate:
    fleet = Hardware(gpu=find_gpu(row.gpu), nodes=row.nodes, gpus_per_node=row.gpus_per_node)
    workload = Workload(numerics="fast", sends_copies=True, one_sampler=False, **row.workload)  # as those servers do
    return Candidate(SHAPES, Split(**row.sizes), workload, fleet, efficiency)


def predict(row: Published, efficiency: Efficiency = SERVERS) -> float:
    return UNITS[row.unit](candidate(row, efficiency))


def fits(gpu: str, nodes: int) -> tuple[bool, float]:
    """Whether R1 fits nodes of eight, with one sequence of 4,096 tokens; and the bytes that the nearest split lacks."""
    fleet = Hardware(gpu=find_gpu(gpu), nodes=nodes, gpus_per_node=8)
    ranking = search(SHAPES, fleet, Workload(concurrency=1), Objective())
    return bool(ranking.fitting), 0.0 if ranking.fitting or not ranking.nearest else ranking.nearest.bytes_missing


def exchanges() -> Iterator[dict[str, float]]:
    """DeepEP's own table, 128 rows a rank: what the model of an exchange gives for it."""
    for record in json.loads(ROWS.read_text())["exchanges"]:
        fleet = Hardware(gpu=find_gpu("h800"), nodes=-(-record["ranks"] // 8), gpus_per_node=8)
        split = Split(data=record["ranks"], expert=record["ranks"])
        clock = Clock(SHAPES, split, Workload(numerics="fast", sends_copies=True), fleet, SERVERS)
        out, back = clock.dispatch_combine_s(QueryRows(rows=128, sequences=128, context=0, busy_groups=record["ranks"]))
        yield {**record, "dispatch_us_predicted": out * 1e6, "combine_us_predicted": back * 1e6}


def sensitivity(rows: list[Published]) -> dict[str, dict[str, list[float]]]:
    """How each prediction changes when one efficiency is a fifth lower or higher: ratios."""
    changed: dict[str, dict[str, list[float]]] = {}
    for name in SHAKEN:
        own = [name, "eager_launch_s"] if name == "launch_s" else [name]
        both = [
            dataclasses.replace(SERVERS, **{each: getattr(SERVERS, each) * factor for each in own})
            for factor in (0.8, 1.2)
        ]
        changed[name] = {row.name: [predict(row, one) / predict(row) for one in both] for row in rows}
    return changed


def speed_table(rows: list[Published]) -> Table:
    header = ["published", "what", "published value", "predicted", "error", "within 25 %"]
    lines = []
    for row in rows:
        value, error = predict(row), predict(row) / row.value - 1
        lines.append(
            [
                row.name,
                row.unit,
                f"{row.value:,g}",
                f"{value:,.4g}",
                f"{error:+.0%}",
                "yes" if abs(error) <= ALLOWED else "no",
            ]
        )
    return Table(header, lines, labels=2)


def main() -> None:
    rows = published()
    memory = {f"{nodes}x8 {gpu}": fits(gpu, nodes) for gpu, nodes in (("h200", 1), ("h100", 2), ("h100", 1))}
    figures = {
        "speeds": [{**row._asdict(), "predicted": predict(row), "error": predict(row) / row.value - 1} for row in rows],
        "fits": {name: {"fits": fit, "bytes_missing": missing} for name, (fit, missing) in memory.items()},
        "exchanges": list(exchanges()),
        "sensitivity": sensitivity([row for row in rows if row.required]),
        "efficiency": dataclasses.asdict(SERVERS),
    }
    print(speed_table(rows).markdown())
    for name, (fit, missing) in memory.items():
        print(f"{name}: {'fits' if fit else f'does not fit, {missing:,.0f} bytes missing on each GPU'}")
    for record in figures["exchanges"]:
        print(record)
    print(save("planner", "benchmarks/parallel/plan_predictions.py", figures))


if __name__ == "__main__":
    main()
