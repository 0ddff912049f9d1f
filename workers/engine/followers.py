"""What ranks other than the leader do with their lives: run rounds as they come, until they are told to stop.

A rank of a later stage takes rounds from the stage before. One beside the leader, or beside the sampler, is told by it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.engine.pipeline import StagePeers, passed, take_verdict
from outrider.workers.engine.runner import Naming, StageRunner
from outrider.workers.engine.sampler import Sampler
from outrider.workers.parallel.stage_link import StageLink
from outrider.workers.types.round import Round, Verdict
from outrider.workers.types.structured_outputs import StructuredOutputsParams


class Verifier(Protocol):
    """What a rank of the last stage does with the states of a round."""

    def begin(self, round: Round) -> None:
        """Called before the round runs."""
        ...

    def judge(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        """The verdict, and the accepted rows' hidden states."""
        ...

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Sequences of later rounds will begin under these."""
        ...


class ToldJudge:
    """A rank of the last stage beside the sampler: makes its part of the logits, and hears what came of it."""

    def __init__(self, sampler: Sampler, told: StageLink) -> None:
        self._sampler, self._told = sampler, told

    def begin(self, round: Round) -> None:
        """Nothing to do: it draws nothing."""

    def judge(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        self._sampler.assist(round, hidden)
        verdict = take_verdict(self._told, round.round_id).verdict
        return verdict, self._sampler.accepted(round, hidden, verdict)

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Nothing to do: it draws nothing."""


class TellingJudge:
    """The sampler, where other ranks share its stage."""

    def __init__(self, sampler: Sampler, stage_peers: StagePeers) -> None:
        self._sampler, self._stage_peers = sampler, stage_peers

    def begin(self, round: Round) -> None:
        self._sampler.begin(round)

    def judge(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        verdict, accepted = self._sampler.judge(round, hidden, stage_s)
        self._stage_peers.broadcast(verdict)
        return verdict, accepted

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        self._sampler.prepare(constraints)


def follow(runner: StageRunner, above: StageLink, onward: StageLink, judge: Verifier | None) -> None:
    """A later stage's life: take a round from `above`, run it, pass it `onward` (the last stage: its verdict).

    One without sequences only says what to prepare, and gets no verdict.
    Returns when told to stop; EngineStoppedError when a neighbour is gone.
    """
    while True:
        message = above.receive(deadline=False, waiting_for="a round")
        if not isinstance(message.content, Round):
            if judge is None:
                onward.send(None, message.hidden)
                onward.flush()
            return
        round = message.content
        if not round.sequences:
            onward.send(round, message.hidden) if judge is None else judge.prepare(round.prepares)
            continue
        if judge is not None:
            judge.begin(round)
        hidden, took = runner.forward(round, message.hidden)
        round = runner.answered(round)
        if judge is None:
            onward.send(passed(round, took), hidden)
        else:
            onward.send(*judge.judge(round, hidden, took))


class Assistant:
    """A rank of the first stage beside the leader: runs the rounds it is told of, and drafts after their verdicts.

    `down` and `up`: where there are later stages, its own links to the next and from the last.
    """

    def __init__(
        self,
        runner: StageRunner,
        told: StageLink,
        drafter: Drafter | None,
        sampler: Sampler | None,
        column: tuple[StageLink, StageLink] | None,
    ) -> None:
        self._runner, self._told, self._drafter = runner, told, drafter
        self._sampler, self._column = sampler, column
        self._under_way: deque[tuple[Round, Tensor]] = deque()

    def run(self) -> None:
        """Returns when told to stop; EngineStoppedError when another rank is gone."""
        while True:
            message = self._told.receive(deadline=False, waiting_for="a round")
            match message.content:
                case Round():
                    self._start(message.content)
                case Verdict():
                    self._finish(message.content)
                case None:
                    return self._stop()

    def _start(self, round: Round) -> None:
        hidden, took = self._runner.forward(round, None)
        if self._column is not None:
            self._column[0].send(passed(round, took), hidden)
        elif self._sampler is not None:
            self._sampler.assist(round, hidden)
        self._under_way.append((round, hidden if self._column is None else hidden[:0]))

    def _finish(self, verdict: Verdict) -> None:
        round, accepted = self._next_finished(verdict)
        while round.round_id != verdict.round_id:  # the leader's drafting failed then, and followers were not told
            round, accepted = self._next_finished(verdict)
        if self._drafter is not None:
            self._drafter.forget(round.ends)
            with Naming(round):
                self._drafter.draft(replace(round, draft_steps=verdict.draft_steps), verdict, accepted)

    def _next_finished(self, verdict: Verdict) -> tuple[Round, Tensor]:
        """The oldest round under way, and its accepted states; of one that `verdict` does not judge, maybe none."""
        round, hidden = self._under_way.popleft()
        if self._column is not None:
            return round, take_verdict(self._column[1], round.round_id).hidden
        if round.round_id != verdict.round_id:
            return round, hidden[:0]
        assert self._sampler is not None, "the only stage also makes logits"
        return round, self._sampler.accepted(round, hidden, verdict)

    def _stop(self) -> None:
        if self._column is not None:
            self._column[0].send(None, torch.empty(0, 0))
            self._column[0].flush()
