"""What each split exchanges: collectives and bytes of a decoding round, by purpose, measured and as the planner counts.

Ranks of one machine share its bandwidth, so the round's own time says little of a cluster; the counts and bytes do.
Counts and bytes are the difference between a longer and a shorter request, so of rounds of one row a stream and
nothing else, over all stages, on the mean rank of each; times are the longer request's. What goes to experts and back
depends on what rows chose: the planner takes all experts as equally likely.

python benchmarks/parallel/split_traffic.py [--model scout] [--tokens 64] [--splits TP2,TP2+EP2,...]
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from outrider import LLM, SamplingParams
from outrider.cluster.planning.candidate import Candidate
from outrider.cluster.planning.efficiency import Efficiency, Workload
from outrider.cluster.planning.hardware import Hardware, find_gpu
from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import Split
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.model.model_shapes import Shapes

SPLITS = {
    "one process": Split(),
    "TP2": Split(tensor=2),
    "TP4": Split(tensor=4),
    "TP2+EP2": Split(tensor=2, expert=2),
    "TP4+EP4": Split(tensor=4, expert=4),
    "DP2+EP2": Split(data=2, expert=2),
    "DP2xTP2+EP4": Split(data=2, tensor=2, expert=4),
    "PP2": Split(pipeline=2),
    "PP3": Split(pipeline=3),
    "PP2xTP2": Split(pipeline=2, tensor=2),
    "PP2xTP2+EP2": Split(pipeline=2, tensor=2, expert=2),
    "PP2xDP2+EP2": Split(pipeline=2, data=2, expert=2),
}
ROUTED = ("rows to experts", "expert outputs")  # whose bytes depend on what rows chose
_NOT_OF_A_ROUND = ("expert loads", "trial")  # now and then, and before the first
_PROMPT, _SHORT = 32, 16  # tokens of a prompt, and of the shorter request's outputs
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Of one purpose in one round, over all stages."""

    count: float
    bytes: float  # that a rank gives
    ms: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--splits", type=words, default=list(SPLITS))
    args = parser.parse_args()
    found = {name: measure(args.model, SPLITS[name], args.streams, args.tokens) for name in args.splits}
    for name, figures in found.items():
        measured, planned = figures["measured"], figures["planned"]
        print(
            f"{name:12} {figures['round_ms']:6.2f} ms a round, in exchanges {_total(measured, 'ms'):5.2f} ms"
            f" over {figures['carriers'] or 'nothing'}: {_total(measured, 'count'):5.1f} collectives"
            f" (planned {_total(planned, 'count'):3.0f}), {_total(measured, 'bytes'):8.0f} bytes a rank"
            f" (planned {_total(planned, 'bytes'):8.0f}); {differences(figures)}"
        )
    command = f"benchmarks/parallel/split_traffic.py --streams {args.streams} --tokens {args.tokens}"
    print("written to", save("sharding", command, {"splits": found}))


def measure(model: str, split: Split, streams: int, tokens: int) -> dict[str, Any]:
    """Of decoding rounds of `streams` streams without drafts; `tokens` of them each beyond the first."""
    parallel = split.parallel()
    texts = prompts("code", streams)
    sizes = {
        name: getattr(parallel, name)
        for name in (f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "expert", "data"))
    }
    with LLM(model, speculation="off", kv_cache_memory_bytes=256 << 20, enable_prefix_caching=False, **sizes) as llm:
        said = llm.generate(texts, SamplingParams(temperature=0, max_tokens=1))
        starts = [
            output.prompt_token_ids[:_PROMPT] for output in said
        ]  # equally long, so that data groups have as many
        seen = _statuses(llm, starts, tokens)
    rounds = _of_leader(seen, lambda rank: rank.counters.rounds)
    rows = streams * tokens / rounds / split.data
    return {
        "rounds": rounds,
        "rows": rows,
        "round_ms": 1000 * (seen[-1][0].busy_s - seen[-2][0].busy_s) / _last_rounds(seen),
        "carriers": seen[-1][0].carriers,
        "measured": {purpose: _plain(each) for purpose, each in carried(seen, split, rounds).items()},
        "planned": {purpose: _plain(each) for purpose, each in planned(model, split, rows).items()},
    }


def _statuses(llm: LLM, starts: list[list[int]], tokens: int) -> list[list[RankStatus]]:
    """Of all ranks before, after the shorter and after the longer request.

    Streams that a round caught between two others start later and end later; where only the shorter request had such a
    round, the difference lacks one of its own, and both are asked again.
    """
    for _ in range(_TRIES):
        seen = [settled(llm)]
        for length in (_SHORT, _SHORT + tokens):
            llm.generate(starts, SamplingParams(temperature=0, max_tokens=length, ignore_eos=True))
            seen.append(settled(llm))
        if _of_leader(seen, lambda rank: rank.counters.rounds) >= tokens:
            return seen
    raise RuntimeError(f"in {_TRIES} tries the streams never started together: rounds cannot be compared")


def planned(model: str, split: Split, rows: float) -> dict[str, Exchanged]:
    """As `outrider plan` counts a round of `rows` rows in each data group."""
    shapes = Shapes.of(load_shape(model), "float32")
    fleet = Hardware(gpu=find_gpu("h200"), nodes=1, gpus_per_node=split.world_size)
    plan = Candidate(shapes, split, Workload(draft_steps=0), fleet, Efficiency())
    total: dict[str, Exchanged] = {}
    for _, one in plan.collectives(rows):
        so_far = total.get(one.purpose, Exchanged(0, 0))
        total[one.purpose] = Exchanged(so_far.count + one.count, so_far.bytes + one.count * one.bytes)
    return total


def carried(seen: list[list[RankStatus]], split: Split, rounds: int) -> dict[str, Exchanged]:
    """Of a round, from statuses of all ranks before, after the shorter and after the longer request."""
    total: dict[str, Traffic] = {}
    for rank in range(split.world_size):
        before, between, after = (statuses[rank].traffic for statuses in seen)
        for purpose in after:
            first, second, third = (each.get(purpose, Traffic()) for each in (before, between, after))
            if purpose not in _NOT_OF_A_ROUND:
                total[purpose] = total.get(purpose, Traffic()) + Traffic(
                    third.count - 2 * second.count + first.count,
                    third.bytes - 2 * second.bytes + first.bytes,
                    third.seconds - second.seconds,
                )
    shares, timed = rounds * split.stage_size, _last_rounds(seen) * split.stage_size
    return {
        purpose: Exchanged(each.count / shares, each.bytes / shares, 1000 * each.seconds / timed)
        for purpose, each in total.items()
    }


def differences(figures: dict[str, Any]) -> str:
    """Between measured and planned, in words.

    Where lanes meet data groups, who is ready when is chance: in a few rounds a group is idle, and parts are padded.
    """
    slack = 1e-5 if figures["rows"] == round(figures["rows"]) else 0.05
    measured, plan = figures["measured"], figures["planned"]
    counts = [
        purpose for purpose in {*measured, *plan} if _of(measured, purpose, "count") != _of(plan, purpose, "count")
    ]
    sizes = [
        purpose
        for purpose in {*measured, *plan}
        if purpose not in ROUTED
        and abs(_of(measured, purpose, "bytes") - _of(plan, purpose, "bytes")) > _of(plan, purpose, "bytes") * slack
    ]
    if counts or sizes:
        return f"counts differ for {sorted(counts)}, bytes for {sorted(sizes)}"
    routed = [
        f"{purpose} {_of(measured, purpose, 'bytes') / _of(plan, purpose, 'bytes') - 1:+.0%}"
        for purpose in ROUTED
        if purpose in plan
    ]
    return ", ".join(["equal", *(f"but {each}" for each in routed)])


def settled(llm: LLM) -> list[RankStatus]:
    """The ranks' statuses, once they report what has been done: each has spoken twice, so once since we asked."""
    seen = llm.status()
    for _ in range(2):
        before = seen
        while any(now is then for now, then in zip(seen, before, strict=True)):
            time.sleep(0.02)
            seen = llm.status()
    return seen


def _of_leader(seen: list[list[RankStatus]], figure: Any) -> Any:
    before, between, after = (figure(statuses[0]) for statuses in seen)
    return after - 2 * between + before


def _last_rounds(seen: list[list[RankStatus]]) -> int:
    """Of the longer request, its prompts' included: what the times are of."""
    return seen[-1][0].counters.rounds - seen[-2][0].counters.rounds


def _of(exchanged: dict[str, dict[str, float]], purpose: str, figure: str) -> float:
    return exchanged.get(purpose, {}).get(figure, 0.0)


def _total(exchanged: dict[str, dict[str, float]], figure: str) -> float:
    return sum(each[figure] for each in exchanged.values())


def _plain(each: Exchanged) -> dict[str, float]:
    return {"count": each.count, "bytes": round(each.bytes, 3), "ms": round(each.ms, 4)}


if __name__ == "__main__":
    main()
