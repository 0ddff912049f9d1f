"""Harvests the model's own continuations of prompts with the engine. It resumes after an interruption.

The shards alone show what is done. A prompt's continuation at a temperature has its own seed. If its shard was not
written before an interruption, the same continuation is generated again.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.workers.llm import LLM
from outrider.workers.serving.harvest_recorder import LEAST_TOKENS
from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.text.outputs import RequestOutput
from outrider.workers.training.distill.prompts import Prompt, noise_seed
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.requests.sampling_params import SamplingParams

_WRITING_S = 120.0  # to wait for the last shard to be written
_AT_ONCE = 256  # concurrent requests


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestTask:
    """One continuation to generate."""

    prompt: Prompt
    temperature: float
    seed: int

    def params(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, seed=self.seed, max_tokens=max_tokens)


def plan_tasks(prompts: Iterable[Prompt], temperatures: Sequence[float], seed: int) -> list[HarvestTask]:
    """All prompts at all temperatures, with the same seeds in every run."""
    return [
        HarvestTask(prompt=prompt, temperature=temperature, seed=noise_seed(prompt.token_ids, temperature, seed))
        for prompt, temperature in itertools.product(prompts, temperatures)
    ]


def tasks_left(tasks: Iterable[HarvestTask], folder: Path) -> list[HarvestTask]:
    """The tasks whose continuation is not in `folder` yet."""
    done = {seed for seed, _ in Harvest(folder).keys}
    return [task for task in tasks if task.seed not in done]


def run_harvest(
    start: Callable[[], LLM], tasks: Sequence[HarvestTask], folder: Path, max_tokens: int, report: Callable[[int], None]
) -> None:
    """Runs the remaining `tasks`. `start` returns an engine that harvests into `folder`.

    `report` gets the number of finished tasks. OutriderError if their shards are not written to the folder.
    """
    left = tasks_left(tasks, folder)
    report(len(tasks) - len(left))
    if not left:
        return
    expected: set[int] = set()
    with start() as llm:
        for first in range(0, len(left), _AT_ONCE):
            part = left[first : first + _AT_ONCE]
            outputs = llm.generate([task.prompt.token_ids for task in part], [task.params(max_tokens) for task in part])
            expected |= {out.outputs[0].seed for out in outputs if _is_kept(out)}
            report(len(tasks) - len(left) + first + len(part))
        _wait_for(expected, folder)


def _is_kept(out: RequestOutput) -> bool:
    """Whether it is long enough to be recorded, without its last token, whose hidden state is not computed."""
    return len(out.prompt_token_ids) + len(out.outputs[0].token_ids) - 1 >= LEAST_TOKENS


def _wait_for(seeds: set[int], folder: Path) -> None:
    """Waits until all of them are on disk: the engine writes shards with a delay."""
    deadline = time.monotonic() + _WRITING_S
    while missing := seeds - {seed for seed, _ in Harvest(folder).keys}:
        if time.monotonic() > deadline:
            raise OutriderError(
                f"{len(missing)} of {len(seeds)} harvested texts did not reach {folder}: see the log for the reason"
            )
        time.sleep(0.05)
