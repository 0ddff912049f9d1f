"""Measures an engine's drafts on its own text: acceptance by position and tokens per round, at a fixed depth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outrider.workers.llm import LLM
from outrider.workers.text.outputs import RequestOutput, SpeculationSummary
from outrider.workers.training.distill.prompts import Prompt
from outrider.workers.types.requests.sampling_params import MTP, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Prompts of one kind, at one temperature."""

    kind: str
    temperature: float
    prompts: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return f"{self.kind}, T={self.temperature:g}"

    def run(self, llm: LLM, max_tokens: int, speculation: str | int, seed: int = 1) -> list[RequestOutput]:
        """Runs all prompts together, to `max_tokens` each. The text is the same with every speculation setting."""
        params = SamplingParams(
            temperature=self.temperature,
            seed=seed,
            max_tokens=max_tokens,
            ignore_eos=True,
            speculation=speculation,
            drafter=None if speculation == "off" else MTP,
        )
        return llm.generate(list(self.prompts), params)


def cases(prompts: Iterable[Prompt], temperatures: Sequence[float], most: int) -> list[Case]:
    """One for each kind and temperature, with up to `most` prompts."""
    by_kind: dict[str, list[tuple[int, ...]]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.kind, []).append(prompt.token_ids)
    return [
        Case(kind=kind, temperature=temperature, prompts=tuple(listed[:most]))
        for kind, listed in sorted(by_kind.items())
        for temperature in temperatures
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFigures:
    """The figures of one case, at a fixed depth."""

    acceptance: list[float]  # of each draft, given that those before it were accepted
    tokens_per_round: float
    draft_ms_per_round: float

    def undisturbed(self, other: "DraftFigures | None") -> "DraftFigures":
        """The run whose drafts took less time, of two. A disturbance makes a run slower and changes nothing else."""
        return self if other is None or self.draft_ms_per_round <= other.draft_ms_per_round else other


def measure_drafts(llm: LLM, case: Case, depth: int, max_tokens: int) -> DraftFigures:
    began = _draft_s(llm)
    outputs = case.run(llm, max_tokens, depth)
    took = _draft_s(llm) - began
    summaries = [out.outputs[0].speculation for out in outputs]
    known = [summary for summary in summaries if summary is not None]
    rounds = sum(summary.rounds for summary in known)
    tokens = sum(len(out.outputs[0].token_ids) for out in outputs)
    return DraftFigures(
        acceptance=conditional_acceptance(known, depth),
        tokens_per_round=tokens / max(1, rounds),
        draft_ms_per_round=1000 * took / max(1, rounds),
    )


def conditional_acceptance(summaries: Sequence[SpeculationSummary], depth: int) -> list[float]:
    """The acceptance rate of each position, given that all earlier drafts were accepted.

    Rounds near a text's end verify fewer drafts; they count for the positions that they verified.
    """
    accepted = [sum(_at(each.accepted_per_position, j) for each in summaries) for j in range(depth)]
    drafted = [sum(_at(each.drafted_per_position, j) for each in summaries) for j in range(depth)]
    tried = [drafted[0], *accepted]
    return [min(1.0, accepted[j] / max(1, min(tried[j], drafted[j]))) for j in range(depth)]


def _at(counts: Sequence[int], position: int) -> int:
    return counts[position] if position < len(counts) else 0


def _draft_s(llm: LLM) -> float:
    return llm.status()[0].draft_s
