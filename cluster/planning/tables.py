"""A ranking as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from outrider.cluster.planning.basis import basis
from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.search import Objective

_GB = 1e9
_NO_KERNELS = "outrider's kernels do not run on {}. It runs in PyTorch there, and takes many times longer than planned."
_WORDS = ("split", "part", "for", "kind", "figure", "origin", "source")


def render(model: str, best: Candidate, shown: Sequence[Candidate], goal: Objective, console: Console) -> None:
    work = best.workload
    console.print(
        f"[bold]{model}[/] on {best.fleet}: [bold]{best.split}[/] on {_gpus(best)}, for {goal.objective}:"
        f" {work.concurrency} sequences of {work.context:,} tokens, {work.draft_steps} drafts at {work.acceptance:.0%}",
        highlight=False,
    )
    console.print(f"Weights in memory: {best.weights_in_memory}.", highlight=False)
    if not best.fleet.gpu.kernels:
        console.print(_NO_KERNELS.format(best.fleet.gpu.name), style="yellow", highlight=False)
    for title, table in (
        ("Plans, best first", plans(shown)),
        ("Memory of each GPU by layers, GB", memory(best)),
        (_round_title(best), time(best)),
        (f"Drafts a round, each accepted with {work.acceptance:.0%}", drafts(best)),
        (f"Collectives of a round with {_rows(best)} rows in a data group", exchange(best)),
        ("Sources of these figures", sources(best)),
    ):
        console.print(f"\n[bold]{title}[/]", highlight=False)
        console.print(table)


def _gpus(plan: Candidate) -> str:
    return "1 GPU" if plan.split.world_size == 1 else f"{plan.split.world_size} GPUs"


def _round_title(plan: Candidate) -> str:
    waits = f", the slowest stage waits {plan.bubble_s * 1e3:.2f} of them" if plan.split.pipeline > 1 else ""
    return (
        f"A round by layers, ms: {plan.round_s * 1e3:.2f} from one to a sequence's next, with"
        f" {plan.efficiency.round_overhead_s * 1e3:.2f} of overhead; {plan.layer_launches} kernels{waits}"
    )


def _rows(plan: Candidate) -> int:
    return max(1, round(plan.rows.rows))


def plans(fitting: Sequence[Candidate]) -> Table:
    table = _table("split", "GPUs", "tokens/s a user", "tokens/s a GPU", "ms a token", "first token s")
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
    """Gigabytes per rank, a column per stage."""
    parts = [{**stage.weights, "buffers": stage.buffers, "runtime": stage.runtime} for stage in plan.memories]
    table = _by_stage(plan, [{name: size / _GB for name, size in part.items()} for part in parts])
    table.add_row("room for cache", *(_amount(stage.cache_bytes / _GB) for stage in plan.memories))
    table.add_row("in tokens", *(f"{stage.cache_tokens:,}" for stage in plan.memories))
    return table


def time(plan: Candidate) -> Table:
    """Milliseconds per round, a column per stage."""
    stages = [{name: seconds * 1e3 for name, seconds in part.items()} for part in plan.decode_parts]
    return _by_stage(plan, stages)


def _by_stage(plan: Candidate, stages: Sequence[dict[str, float]]) -> Table:
    """A row per part, and their sum."""
    table = _table("part", *(f"{first}..{end - 1}" for first, end in plan.layer_splits))
    for part in dict.fromkeys(part for stage in stages for part in stage):
        table.add_row(part, *(_amount(stage.get(part, 0.0)) for stage in stages))
    table.add_row("in all", *(_amount(sum(stage.values())) for stage in stages), style="bold")
    return table


def drafts(plan: Candidate) -> Table:
    """The figures for other numbers of drafts per round."""
    table = _table("drafts", "tokens a round", "ms a round", "tokens/s a user", "tokens/s a GPU")
    for one in plan.by_drafts():
        table.add_row(
            str(one.workload.draft_steps),
            f"{one.workload.tokens_per_round:.2f}",
            f"{one.round_s * 1e3:.2f}",
            f"{one.tokens_per_s_per_user:.1f}",
            f"{one.tokens_per_s_per_gpu:.1f}",
        )
    return table


def exchange(plan: Candidate) -> Table:
    table = _table("stage", "for", "kind", "ranks", "times", "bytes each")
    for stage, one in plan.collectives(_rows(plan)):
        size = plan.split.group_size(one.group)
        table.add_row(str(stage), one.purpose, one.kind, str(size), f"{one.count:g}", f"{one.bytes:,.0f}")
    if not table.rows:
        table.add_row("", "none", *[""] * 4)
    return table


def sources(plan: Candidate) -> Table:
    table = _table("figure", "value", "origin", "source")
    for one in basis(plan.efficiency):
        table.add_row(one.name, "" if one.value is None else f"{one.value:.3g}", one.origin, one.source)
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right")
    return table


def _amount(value: float) -> str:
    return f"{value:.2f}" if value else ""
