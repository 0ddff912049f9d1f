"""What auto_against_depths.py compares: an engine for every arm, its requests, and auto against the rest.

An arm is "off", a depth, "auto", or the name of a drafter that auto has to do with alone.
"""

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.common.timed_batches import BatchLLM
from benchmarks.speculation.record_rounds import kind_prompts
from outrider import SamplingParams
from outrider.workers.types.requests.sampling_params import DRAFTERS

ARMS = ("off", "1", "2", "3", "4", "5", "auto")
SEED = 1


class Engines:
    """One of each arm's own: one that runs five arms in turn has its weights in the caches, and auto learns alone."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        settings = {"dtype": args.dtype, "max_num_seqs": max(32, *args.batch), "enable_prefix_caching": False}
        drafting = {"speculation": "auto", "draft_model": args.draft_model}
        self._own = {
            arm: stack.enter_context(
                BatchLLM(args.model, **settings, **({"speculation": "off"} if arm == "off" else drafting))
            )
            for arm in args.speculation
        }
        self._any = next(iter(self._own.values()))
        if self._any.tokenizer is None:
            sys.exit(f"{args.model} has no tokenizer to make prompts with")

    def of(self, arm: str) -> BatchLLM:
        return self._own[arm]

    def prompts(self, kind: str, count: int) -> list[list[int]]:
        assert self._any.tokenizer is not None
        return kind_prompts(kind, self._any.tokenizer, self._any._host.engine.info.vocab_size, count)


def params(arm: str, temperature: float, tokens: int, seed: int) -> SamplingParams:
    """What a request of the arm asks for."""
    drafter = arm if arm in DRAFTERS else None
    return SamplingParams(
        temperature=temperature,
        max_tokens=tokens,
        ignore_eos=True,
        seed=seed,
        speculation=int(arm) if arm.isdigit() else "auto" if drafter else arm,
        drafter=drafter,
    )


def against(arms: dict[str, float]) -> dict[str, Any]:
    """Auto over the best static depth (off among them), and over off; None where an arm is missing."""
    auto = arms.get("auto")
    speeds = statics(arms)
    if auto is None or not speeds:
        return {"best_static": None, "auto_over_best": None, "auto_over_off": None}
    best = max(speeds, key=speeds.__getitem__)
    over_off = auto / speeds["off"] if "off" in speeds else None
    return {"best_static": best, "auto_over_best": auto / speeds[best], "auto_over_off": over_off}


def statics(arms: dict[str, Any]) -> dict[str, Any]:
    """Those whose depth is fixed."""
    return {arm: found for arm, found in arms.items() if arm == "off" or arm.isdigit()}


def verdict(one: dict[str, Any]) -> str:
    if one["auto_over_best"] is None:
        return "no comparison"
    over_off = f", {one['auto_over_off']:.2f} of off" if one["auto_over_off"] is not None else ""
    here = f": {one['auto_over_luckiest']:.2f} in these turns" if "auto_over_luckiest" in one else ""
    if (luckiest := one.get("luckiest_by_hour_over_best")) is not None:
        over_off += f" (the luckiest static depth of each hour: {luckiest:.2f} of the best)"
    return f"auto {one['auto_over_best']:.2f} of the best static depth ({one['best_static']}{here}){over_off}"
