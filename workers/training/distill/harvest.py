"""Harvests the model's own continuations of prompts, by the engine that serves it. Goes on where it was ended.

What is done is known by the shards alone: a prompt's continuation at a temperature is drawn with a seed of its own,
and is made again, the same, if its shard was not yet written when a run was ended.
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
from outrider.workers.types.sampling_params import SamplingParams

_WRITING_S = 120.0  # for the last shard to reach the disk
_AT_ONCE = 256  # requests handed to the engine together


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestTask:
    """One continuation to make."""

    prompt: Prompt
    temperature: float
    seed: int

    def params(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, seed=self.seed, max_tokens=max_tokens)


def plan_tasks(prompts: Iterable[Prompt], temperatures: Sequence[float], seed: int) -> list[HarvestTask]:
    """Every prompt at every temperature; the same seeds in every run."""
    return [
        HarvestTask(prompt=prompt, temperature=temperature, seed=noise_seed(prompt.token_ids, temperature, seed))
        for prompt, temperature in itertools.product(prompts, temperatures)
    ]


def tasks_left(tasks: Iterable[HarvestTask], folder: Path) -> list[HarvestTask]:
    """Those whose continuation is not in `folder` yet."""
    done = {seed for seed, _ in Harvest(folder).keys}
    return [task for task in tasks if task.seed not in done]


def run_harvest(
    start: Callable[[], LLM], tasks: Sequence[HarvestTask], folder: Path, max_tokens: int, report: Callable[[int], None]
) -> None:
    """Makes every one of `tasks` that is left. `start` gives an engine that harvests into `folder`.

    `report` hears how many tasks are done. OutriderError if their shards do not reach the folder.
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
    """Whether it is long enough for the recorder: the last token's state is not known."""
    return len(out.prompt_token_ids) + len(out.outputs[0].token_ids) - 1 >= LEAST_TOKENS


def _wait_for(seeds: set[int], folder: Path) -> None:
    """Until all of them are on the disk: the engine writes behind its rounds."""
    deadline = time.monotonic() + _WRITING_S
    while missing := seeds - {seed for seed, _ in Harvest(folder).keys}:
        if time.monotonic() > deadline:
            raise OutriderError(
                f"{len(missing)} of {len(seeds)} harvested texts did not reach {folder}: see the log for the reason"
            )
        time.sleep(0.05)
