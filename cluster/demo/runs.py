"""Runs the demo's requests through a gateway, alternately with speculation off and auto, and measures them."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from outrider.cluster.api.generation import Finished, Output
from outrider.cluster.client.client import Client
from outrider.cluster.demo.report import MODES, Run
from outrider.workers.text.assembler import Usage
from outrider.workers.types.requests.sampling_params import SamplingParams

MEASURE_S = 60.0  # maximum for all repeats together
WARM_UP_TOKENS = 16
MIN_REPEATS = 2
SEED = 1
# Greedy output of a small model repeats itself, which raises acceptance. So the same prompts are also sampled.
TEMPERATURES = {"": 0.0, "_sampled": 0.8}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTask:
    """One request, to be run in both modes."""

    domain: str
    prompt: int
    text: str
    temperature: float


@dataclass(frozen=True, slots=True)
class Delta:
    """One message's tokens, and how many of them were accepted drafts, which come first."""

    token_ids: tuple[int, ...]
    accepted: int
    drafted: int = 0  # drafts verified
    seconds: float = 0.0  # from sending the request to this message


def load_tasks(prompts: int) -> list[DemoTask]:
    """The first prompts of each kind that ship with outrider, each greedy and sampled."""
    kinds = json.loads(resources.files("outrider.cluster.client").joinpath("prompts.json").read_text("utf-8"))
    return [
        DemoTask(domain=f"{kind}{suffix}", prompt=number, text=text, temperature=temperature)
        for suffix, temperature in TEMPERATURES.items()
        for kind, texts in kinds.items()
        for number, text in enumerate(texts[:prompts])
    ]


def warm_up(client: Client, tasks: Sequence[DemoTask]) -> float:
    """Runs one short request of each kind, since first requests are slower. Returns tokens per second."""
    runs = [
        ask(client, task, mode, 0, WARM_UP_TOKENS)
        for task in {task.domain: task for task in tasks}.values()
        for mode in MODES
    ]
    return sum(len(run.token_ids) for run in runs) / sum(run.seconds for run in runs)


def affordable_tokens(tokens_per_second: float, tasks: int, most: int) -> int:
    """Tokens per request (a multiple of 8, at least 16) for which the minimum repeats fit in MEASURE_S."""
    requests = tasks * len(MODES) * MIN_REPEATS
    affordable = int(tokens_per_second * MEASURE_S / requests) // 8 * 8
    return min(most, max(16, affordable))


def measure(client: Client, tasks: Sequence[DemoTask], max_tokens: int, repeats: int) -> Iterator[Run]:
    """Runs every task in both modes, `repeats` times or until MEASURE_S. A started repeat is always completed.

    Modes alternate with every request, and so does the order, so that slow phases of the machine affect both.
    """
    began = time.monotonic()
    for repeat in range(repeats):
        repeat_began = time.monotonic()
        for number, task in enumerate(tasks):
            for mode in MODES if (repeat + number) % 2 == 0 else reversed(MODES):
                yield ask(client, task, mode, repeat, max_tokens)
        now = time.monotonic()
        if repeat + 1 >= MIN_REPEATS and (now - began) + (now - repeat_began) > MEASURE_S:
            return


def ask(
    client: Client,
    task: DemoTask,
    mode: str,
    repeat: int,
    max_tokens: int,
    on_delta: Callable[[Delta], None] = lambda delta: None,
) -> Run:
    """One request, timed to its last token."""
    params = SamplingParams(temperature=task.temperature, seed=SEED, max_tokens=max_tokens, speculation=mode)
    token_ids: list[int] = []
    texts: list[str] = []
    end: Finished | None = None
    began = last = time.monotonic()
    for event in client.stream(task.text, params=params, speculation_detail=True):
        if isinstance(event, Output):
            last = time.monotonic() if event.token_ids else last
            token_ids += event.token_ids
            texts.append(event.text)
            on_delta(Delta(event.token_ids, event.accepted, event.drafted, time.monotonic() - began))
        elif isinstance(event, Finished):
            end = event
    assert end is not None, "the client promises a Finished event, or raises"
    return Run(
        domain=task.domain,
        prompt=task.prompt,
        repeat=repeat,
        mode=mode,
        token_ids=tuple(token_ids),
        text="".join(texts),
        finish_reason=end.reason.value,
        seconds=last - began,
        usage=end.usage or Usage(),
    )
