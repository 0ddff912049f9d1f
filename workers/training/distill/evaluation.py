"""Compares the model before and after training: one engine with swapped MTP modules, on held-out prompts."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outrider.workers.llm import LLM
from outrider.workers.training.distill.drafts import Case, DraftFigures, measure_drafts
from outrider.workers.types.errors import OutriderError

OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSize:
    """The amount of measurement."""

    depth: int
    max_tokens: int = 96
    timed_prompts: int = 2  # per case, one after the other
    repeats: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The figures of one case. Speeds are medians of interleaved runs, one prompt at a time, in tokens per second."""

    case: str
    drafts: dict[str, DraftFigures]  # by variant
    tokens_per_second: dict[str, float]  # by variant, with speculation auto; and "off"

    def speedup(self, variant: str) -> float:
        """Relative to no speculation."""
        return self.tokens_per_second[variant] / self.tokens_per_second[OFF]

    def as_json(self) -> dict[str, Any]:
        speeds = {variant: round(self.speedup(variant), 3) for variant in self.drafts}
        return {**asdict(self), "speedup": speeds}


def compare(
    llm: LLM, variants: dict[str, str], cases: Sequence[Case], extent: EvaluationSize, report: Callable[[str], None]
) -> list[Comparison]:
    """`variants`: name -> checkpoint, each of the model that `llm` runs. The last one stays loaded.

    OutriderError if a variant changed a text, which would be a bug.
    """
    drafts: dict[str, dict[str, DraftFigures]] = {case.name: {} for case in cases}
    for _, (variant, checkpoint) in itertools.product(range(extent.repeats), variants.items()):
        llm.swap_drafter(checkpoint)
        for case in cases:
            report(f"{variant}: acceptance, {case.name}")
            figures = measure_drafts(llm, case, extent.depth, extent.max_tokens)
            drafts[case.name][variant] = figures.undisturbed(drafts[case.name].get(variant))
    return [
        Comparison(
            case=case.name, drafts=drafts[case.name], tokens_per_second=_speeds(llm, variants, case, extent, report)
        )
        for case in cases
    ]


def _speeds(
    llm: LLM, variants: dict[str, str], case: Case, extent: EvaluationSize, report: Callable[[str], None]
) -> dict[str, float]:
    """Runs all arms over the same prompts in turn, so that disturbances affect all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in (OFF, *variants)}
    prompts = case.prompts[: extent.timed_prompts]
    texts: dict[tuple[int, ...], list[int]] = {}
    for _, (arm, checkpoint) in itertools.product(range(extent.repeats), [(OFF, ""), *variants.items()]):
        report(f"{arm}: speed, {case.name}")
        if arm != OFF:
            llm.swap_drafter(checkpoint)
        took = 0.0
        for prompt in prompts:
            alone = Case(kind=case.kind, temperature=case.temperature, prompts=(prompt,))
            began = time.perf_counter()
            token_ids = alone.run(llm, extent.max_tokens, OFF if arm == OFF else "auto")[0].outputs[0].token_ids
            took += time.perf_counter() - began
            if texts.setdefault(prompt, token_ids) != token_ids:
                raise OutriderError(f"{arm} changed the text of a prompt ({case.name}): please report this")
        seconds[arm].append(took)
    tokens = sum(map(len, texts.values()))
    return {arm: tokens / statistics.median(each) for arm, each in seconds.items()}
