"""How the leader gets a Verdict for a Round: from this process alone, or through the stages after it.

Rounds go in and verdicts come out in the same order. Up to `lanes` rounds may be under way.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import Round, Verdict
from outrider.workers.engine.runner import StageRunner
from outrider.workers.engine.sampler import Sampler
from outrider.workers.errors import EngineStoppedError
from outrider.workers.parallel.stage_link import StageLink


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """A finished round: its verdict and its accepted rows' hidden states, [sum(accepted_rows), hidden]."""

    verdict: Verdict
    hidden: Tensor


class Pipeline(Protocol):
    lanes: int

    def dispatch(self, round: Round) -> None:
        """Starts a round. It is not an error to dispatch while others are under way."""
        ...

    def collect(self) -> RoundResult:
        """Waits for the oldest round under way. EngineStoppedError names the rank that failed to answer."""
        ...

    def close(self) -> None:
        """Tells the other stages, if any, to stop."""
        ...


class SingleStage:
    """The whole model in this process: a round is finished when it has been dispatched."""

    lanes = 1

    def __init__(self, runner: StageRunner, sampler: Sampler) -> None:
        self._runner, self._sampler = runner, sampler
        self._finished: deque[RoundResult] = deque()

    def dispatch(self, round: Round) -> None:
        hidden, took = self._runner.forward(round, None)
        verdict, accepted = self._sampler.judge(round, hidden, took)
        self._finished.append(RoundResult(verdict=verdict, hidden=accepted))

    def collect(self) -> RoundResult:
        return self._finished.popleft()

    def close(self) -> None:
        self._finished.clear()


class FirstStage:
    """The first of several stages: sends rounds down, takes verdicts from the last."""

    def __init__(self, runner: StageRunner, lanes: int, down: StageLink, up: StageLink) -> None:
        self.lanes = lanes
        self._runner, self._down, self._up = runner, down, up
        self._under_way: deque[int] = deque()

    def dispatch(self, round: Round) -> None:
        hidden, took = self._runner.forward(round, None)
        self._down.send(_passed(round, took), hidden)
        self._under_way.append(round.round_id)

    def collect(self) -> RoundResult:
        round_id = self._under_way.popleft()
        message = self._up.receive(deadline=True, waiting_for=f"the verdict of round {round_id}")
        if not isinstance(message.content, Verdict) or message.content.round_id != round_id:
            raise EngineStoppedError(f"expected the verdict of round {round_id}, got {message.content!r}")
        return RoundResult(verdict=message.content, hidden=message.hidden)

    def close(self) -> None:
        self._down.send(None, torch.empty(0, 0))
        self._down.flush()


def follow(runner: StageRunner, above: StageLink, onward: StageLink, sampler: Sampler | None) -> None:
    """A later stage's life: take a round from `above`, run it, pass it `onward` (the last stage: its verdict).

    Returns when told to stop; EngineStoppedError when a neighbour is gone.
    """
    while True:
        message = above.receive(deadline=False, waiting_for="a round")
        if not isinstance(message.content, Round):
            if sampler is None:
                onward.send(None, message.hidden)
                onward.flush()
            return
        round = message.content
        hidden, took = runner.forward(round, message.hidden)
        if sampler is None:
            onward.send(_passed(round, took), hidden)
        else:
            onward.send(*sampler.judge(round, hidden, took))


def _passed(round: Round, took: float) -> Round:
    """The round with one more stage's seconds."""
    return replace(round, stage_s=np.append(round.stage_s, took))
