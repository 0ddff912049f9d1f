"""A ranking as JSON data, for `outrider plan --json`."""

import dataclasses
from typing import Any

from outrider.cluster.planning.basis import basis
from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.search import Objective, Ranking
from outrider.cluster.planning.split import Split


def document(model: str, ranking: Ranking, goal: Objective, alternatives: int) -> dict[str, Any]:
    """The figures of the best plan and of ranked alternatives. If nothing fits, of the plan that lacks the least."""
    shown = ranking.fitting or ((ranking.nearest,) if ranking.nearest else ())
    head = {"model": model, "objective": goal.objective, "fits": bool(ranking.fitting)}
    refused = [{**_sizes(split), "why": why} for split, why in ranking.refused]
    if not shown:
        return {**head, "refused": refused}
    best = shown[0]
    return {
        **head,
        **summary(best),
        **_shortage(best),
        "fleet": {
            "gpu": dataclasses.asdict(best.fleet.gpu),
            "nodes": best.fleet.nodes,
            "gpus_per_node": best.fleet.gpus_per_node,
        },
        "workload": dataclasses.asdict(best.workload),
        "stages": stages(best),
        "ranks": [dataclasses.asdict(rank) for rank in best.ranks()],
        "collectives": collectives(best),
        "drafts": [drafts(one) for one in best.by_drafts()],
        "alternatives": [summary(other) for other in shown[1 : 1 + alternatives]],
        "refused": refused,
        "efficiency": dataclasses.asdict(best.efficiency),
        "basis": [dataclasses.asdict(one) for one in basis(best.efficiency)],
    }


def _sizes(split: Split) -> dict[str, int]:
    return {
        "world_size": split.world_size,
        "tensor_parallel_size": split.tensor,
        "pipeline_parallel_size": split.pipeline,
        "expert_parallel_size": split.expert,
        "data_parallel_size": split.data,
    }


def summary(plan: Candidate) -> dict[str, Any]:
    """The figures by which plans are compared. Units: seconds, bytes, tokens."""
    return {
        **_sizes(plan.split),
        "weights_in_memory": plan.weights_in_memory,
        "bytes_per_gpu": round(plan.tightest[1]),
        "kv_cache_tokens": plan.cache_tokens,
        "longest_context": plan.longest_context,
        "most_sequences": plan.most_sequences,
        "concurrency": plan.workload.concurrency,
        "numerics": plan.workload.numerics,
        "layer_launches": plan.layer_launches,
        "round_s": plan.round_s,
        "seconds_per_token": plan.token_s,
        "seconds_to_first_token": plan.first_token_s,
        "tokens_per_s_per_user": plan.tokens_per_s_per_user,
        "tokens_per_s_per_gpu": plan.tokens_per_s_per_gpu,
    }


def drafts(plan: Candidate) -> dict[str, Any]:
    """The figures for a number of drafts per round."""
    return {
        "draft_steps": plan.workload.draft_steps,
        "tokens_per_round": plan.workload.tokens_per_round,
        "round_s": plan.round_s,
        "tokens_per_s_per_user": plan.tokens_per_s_per_user,
        "tokens_per_s_per_gpu": plan.tokens_per_s_per_gpu,
    }


def _shortage(plan: Candidate) -> dict[str, Any]:
    stage, needed = plan.tightest
    had = plan.fleet.gpu.memory_bytes
    return {
        "bytes_needed": round(needed),
        "bytes_had": had,
        "bytes_missing": round(plan.bytes_missing),
        "tightest_stage": stage,
    }


def stages(plan: Candidate) -> list[dict[str, Any]]:
    """Of each stage: layers (first, one past the last), bytes per rank by part, seconds of a round by part."""
    return [
        {
            "stage": number,
            "layers": list(layers),
            "ranks": plan.split.stage_size,
            "bytes": {
                **{part: round(size) for part, size in memory.weights.items()},
                "buffers": round(memory.buffers),
                "runtime": round(memory.runtime),
                "cache": round(plan.wanted_tokens * memory.cache_per_token),
                "kept_free": round(memory.kept_free(plan.wanted_tokens)),
            },
            "kv_cache_tokens": memory.cache_tokens,
            "seconds": parts,
        }
        for number, (layers, memory, parts) in enumerate(
            zip(plan.layer_splits, plan.memories, plan.decode_parts, strict=True)
        )
    ]


def collectives(plan: Candidate, rows: int | None = None) -> list[dict[str, Any]]:
    """Collectives of one round without drafts, with `rows` rows per data group (default: those of a lane)."""
    wanted = round(plan.rows.rows) if rows is None else rows
    return [
        {
            "stage": stage,
            "purpose": one.purpose,
            "kind": one.kind,
            "group": one.group,
            "ranks": plan.split.group_size(one.group),
            "count": one.count,
            "bytes": one.bytes,
        }
        for stage, one in plan.collectives(wanted)
    ]
