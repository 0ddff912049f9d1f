"""Computes the figures of demo.json from the demo's runs. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outrider.workers.text.assembler import Usage

MODES = ("off", "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One request as its client saw it."""

    domain: str
    prompt: int
    repeat: int
    mode: str  # "off" or "auto"
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    seconds: float  # from sending the request to its last token
    usage: Usage

    @property
    def answer(self) -> tuple[tuple[int, ...], str, str]:
        """Everything that must not depend on the mode."""
        return self.token_ids, self.text, self.finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReport:
    """One domain's figures. Field names are those of demo.json."""

    prompts: int
    tokens: int  # of one pass over the prompts
    tokens_per_second_off: float
    tokens_per_second_auto: float
    speedup: float
    acceptance_per_position: list[float]
    mean_tokens_per_round: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """The content of demo.json."""

    model: str
    pipeline_parallel_size: int
    identical: bool
    domains: dict[str, DomainReport]


def make_report(model: str, pipeline_parallel_size: int, runs: Sequence[Run]) -> DemoReport:
    """The figures of all domains with runs in both modes."""
    domains = list(dict.fromkeys(run.domain for run in runs))
    return DemoReport(
        model=model,
        pipeline_parallel_size=pipeline_parallel_size,
        identical=not differing(runs),
        domains={domain: _report_domain([run for run in runs if run.domain == domain]) for domain in domains},
    )


def differing(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """(domain, prompt) of prompts whose answers differ between any two modes or repeats."""
    answers: dict[tuple[str, int], set[tuple[tuple[int, ...], str, str]]] = {}
    for run in runs:
        answers.setdefault((run.domain, run.prompt), set()).add(run.answer)
    return sorted(key for key, different in answers.items() if len(different) > 1)


def _report_domain(runs: Sequence[Run]) -> DomainReport:
    off, auto = (_median_speed([run for run in runs if run.mode == mode]) for mode in MODES)
    drafted = [run for run in runs if run.mode == "auto"]
    first_pass = [run for run in drafted if run.repeat == drafted[0].repeat]
    rounds = sum(run.usage.rounds for run in drafted)
    return DomainReport(
        prompts=len({run.prompt for run in runs}),
        tokens=sum(len(run.token_ids) for run in first_pass),
        tokens_per_second_off=off,
        tokens_per_second_auto=auto,
        speedup=auto / off,
        acceptance_per_position=acceptance_per_position([run.usage for run in drafted]),
        mean_tokens_per_round=sum(len(run.token_ids) for run in drafted) / max(rounds, 1),
    )


def _median_speed(runs: Sequence[Run]) -> float:
    """Tokens per second: the median over passes through the prompts."""
    repeats = sorted({run.repeat for run in runs})
    speeds = []
    for repeat in repeats:
        once = [run for run in runs if run.repeat == repeat]
        speeds.append(sum(len(run.token_ids) for run in once) / sum(run.seconds for run in once))
    return statistics.median(speeds)


def acceptance_per_position(usages: Sequence[Usage]) -> list[float]:
    """[j]: rounds whose drafts 1..j+1 were all accepted, over those that verified at least j+1."""
    positions = max((len(usage.drafted_per_position) for usage in usages), default=0)
    verified = [_total([usage.drafted_per_position for usage in usages], j) for j in range(positions)]
    accepted = [_total([usage.accepted_per_position for usage in usages], j) for j in range(positions)]
    return [good / all_ for good, all_ in zip(accepted, verified, strict=True)]


def _total(counts: Iterable[Sequence[int]], position: int) -> int:
    return sum(count[position] for count in counts if position < len(count))
