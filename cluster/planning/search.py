"""Finds the splits that fit a fleet and ranks them. Pure."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware
from outrider.cluster.planning.split import Split, refusal, splits
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_shapes import Shapes

OBJECTIVES = ("latency", "throughput")


class DoesNotFitError(OutriderError):
    """No split of the model fits the fleet. The message has needed and available bytes, and the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The criterion for ranking plans. Raises ValueError for an unknown objective."""

    objective: str = "latency"
    tokens_per_s_per_user: float = 0.0  # for throughput: minimum per user
    sizes: Mapping[str, int] | None = None  # fixed sizes, by field of Split

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Plans, best first. If none fits, `nearest` is the one that lacks the least memory, or is too slow."""

    fitting: tuple[Candidate, ...]
    nearest: Candidate | None
    refused: tuple[tuple[Split, str], ...]  # splits of the requested sizes that are impossible, with the reason


def search(
    shapes: Shapes,
    fleet: Hardware,
    workload: Workload,
    goal: Objective,
    efficiency: Efficiency | None = None,
) -> Ranking:
    """All splits of the model over the fleet or part of it, as GPU ranks would run them, best first."""
    allowed, refused = _allowed(shapes, fleet, workload, goal.sizes or {})
    every = [Candidate(shapes, split, workload, fleet, efficiency or Efficiency()) for split in allowed]
    candidates = [candidate.resolved for candidate in every]
    fitting = [fit for candidate in candidates for fit in _settled(candidate, goal)]
    least = [
        candidate.at(candidate.split.data) if goal.objective == "throughput" else candidate for candidate in candidates
    ]
    return Ranking(
        fitting=tuple(sorted(fitting, key=lambda candidate: _order(candidate, goal))),
        nearest=min(least, key=lambda candidate: candidate.bytes_missing, default=None),
        refused=tuple(refused),
    )


def _allowed(
    shapes: Shapes, fleet: Hardware, workload: Workload, sizes: Mapping[str, int]
) -> tuple[list[Split], list[tuple[Split, str]]]:
    """Splits with the fixed sizes. If there is none, the smallest split of these sizes and why it is impossible."""
    redundant, requested = workload.redundant_experts, Split(**sizes)
    every = [requested] if len(sizes) == 4 else splits(shapes.model, fleet.size, redundant)
    alike = [split for split in every if all(getattr(split, name) == size for name, size in sizes.items())]
    why = refusal(shapes.model, requested, redundant if requested.spread else 0)
    if why is None and requested.world_size > fleet.size:
        why = f"{requested} needs {requested.world_size} GPUs, and {fleet} has {fleet.size}"
    if why is None or (alike and len(sizes) < 4):
        return alike, []
    return [], [(requested, why)]


def _settled(candidate: Candidate, goal: Objective) -> Iterator[Candidate]:
    """With the given workload (latency), or with as many sequences as fit and are fast enough (throughput)."""
    if goal.objective == "latency":
        yield from [candidate] if candidate.fits else []
        return
    groups = candidate.split.data

    def too_many(a_group: int) -> bool:
        one = candidate.at(a_group * groups)
        return not one.fits or one.tokens_per_s_per_user < goal.tokens_per_s_per_user

    room = min(candidate.at(groups).most_sequences // groups, candidate.workload.max_num_seqs)
    most = bisect_left(range(1, room + 1), True, key=too_many)
    if most:
        yield candidate.at(most * groups)


def _order(candidate: Candidate, goal: Objective) -> tuple[float, ...]:
    if goal.objective == "latency":
        return (round(candidate.token_s, 9), candidate.split.world_size)
    return (-round(candidate.tokens_per_s_per_gpu, 6), candidate.split.world_size)


def require_fit(ranking: Ranking, model: str, fleet: Hardware) -> Candidate:
    """The best plan. Raises DoesNotFitError if none fits, OutriderError if the sizes are impossible."""
    if ranking.fitting:
        return ranking.fitting[0]
    if ranking.refused:
        raise OutriderError(f"{model} cannot be split with these sizes: {ranking.refused[0][1]}")
    if ranking.nearest is None:
        raise OutriderError(
            f"{model} has no split with these sizes over {fleet}: ranks must be a power of two, or divide its GPUs"
        )
    if not ranking.nearest.bytes_missing:
        raise DoesNotFitError(f"{model} fits {fleet}, but no plan reaches the minimum tokens/s per user")
    raise DoesNotFitError(shortage(ranking.nearest, model))


def shortage(candidate: Candidate, model: str) -> str:
    """The memory that the fullest GPU lacks, and its parts."""
    stage, needed = candidate.tightest
    memory, had = candidate.memories[stage], candidate.fleet.gpu.memory_bytes
    return (
        f"{model} does not fit {candidate.fleet}: the nearest split, {candidate.split}, needs {needed:,.0f} bytes on"
        f" every GPU of stage {stage} (weights {memory.weight_bytes:,.0f}, cache of {candidate.wanted_tokens:,} tokens"
        f" {candidate.wanted_tokens * memory.cache_per_token:,.0f}, buffers {memory.buffers:,.0f}, runtime"
        f" {memory.runtime:,.0f}, kept free {memory.kept_free(candidate.wanted_tokens):,.0f}) and has {had:,}:"
        f" {candidate.bytes_missing:,.0f} bytes are missing"
    )
