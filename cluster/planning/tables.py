"""A ranking as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.search import Goal

_GB = 1e9


def render(model: str, best: Candidate, shown: Sequence[Candidate], goal: Goal, console: Console) -> None:
    work = best.workload
    console.print(
        f"[bold]{model}[/] on {best.fleet}: [bold]{best.split}[/], {best.split.world_size} GPUs, for {goal.objective}:"
        f" {work.concurrency} sequences of {work.context:,} tokens, {work.draft_steps} drafts at {work.acceptance:.0%}",
        highlight=False,
    )
    console.print(plans(shown))
    console.print(memory(best))
    console.print(time(best))
    console.print(exchange(best))


def plans(fitting: Sequence[Candidate]) -> Table:
    table = _table(
        "Plans, best first", "split", "GPUs", "tokens/s a user", "tokens/s a GPU", "ms a token", "first token s"
    )
    for heading in ("sequences", "longest context", "GB a GPU"):
        table.add_column(heading, justify="right")
    for plan in fitting:
        table.add_row(
            str(plan.split),
            str(plan.split.world_size),
            f"{plan.tokens_per_s_per_user:.1f}",
            f"{plan.tokens_per_s_per_gpu:.1f}",
            f"{plan.token_s * 1e3:.2f}",
            f"{plan.first_token_s:.2f}",
            f"{plan.workload.concurrency} of {plan.most_sequences}",
            f"{plan.longest_context:,}",
            f"{plan.tightest[1] / _GB:.1f} of {plan.fleet.gpu.memory_bytes / _GB:.1f}",
        )
    return table


def memory(plan: Candidate) -> Table:
    """Gigabytes of each rank, a column for each stage."""
    parts = [{**stage.weights, "buffers": stage.buffers, "runtime": stage.runtime} for stage in plan.memories]
    table = _by_stage(
        "Memory of each GPU, GB, by layers", plan, [{name: size / _GB for name, size in part.items()} for part in parts]
    )
    table.add_row("room for cache", *(_amount(stage.cache_bytes / _GB) for stage in plan.memories))
    table.add_row("in tokens", *(f"{stage.cache_tokens:,}" for stage in plan.memories))
    return table


def time(plan: Candidate) -> Table:
    """Milliseconds of a round, a column for each stage."""
    waits = max(plan.bubble_s, 0.0) * 1e3
    title = f"A round: {plan.round_s * 1e3:.2f} ms, of which the slowest stage waits {waits:.2f}; ms by layers"
    stages = [{name: seconds * 1e3 for name, seconds in part.items()} for part in plan.decode_parts]
    return _by_stage(title, plan, stages)


def _by_stage(title: str, plan: Candidate, stages: Sequence[dict[str, float]]) -> Table:
    """A row for each part, and their sum."""
    table = _table(title, "part", *(f"{first}..{end - 1}" for first, end in plan.layer_splits))
    for part in dict.fromkeys(part for stage in stages for part in stage):
        table.add_row(part, *(_amount(stage.get(part, 0.0)) for stage in stages))
    table.add_row("in all", *(_amount(sum(stage.values())) for stage in stages), style="bold")
    return table


def exchange(plan: Candidate) -> Table:
    """Collectives of a round."""
    rows = max(1, round(plan.rows.rows))
    table = _table(
        f"Collectives of a round with {rows} rows in a data group",
        "stage",
        "for",
        "kind",
        "ranks",
        "times",
        "bytes each",
    )
    for stage, one in plan.collectives(rows):
        size = plan.split.group_size(one.group)
        table.add_row(str(stage), one.purpose, one.kind, str(size), f"{one.count:g}", f"{one.bytes:,.0f}")
    if not table.rows:
        table.add_row("", "none", *[""] * 4)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("split", "part", "for", "kind") else "right")
    return table


def _amount(value: float) -> str:
    return f"{value:.2f}" if value else ""
