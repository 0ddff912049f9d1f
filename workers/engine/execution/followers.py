"""The main loops of ranks other than the leader: receive rounds and run them until the leader stops.

Ranks of later stages receive rounds from the previous stage; the leader's stage peers receive them from the leader. The
sampler sends verdicts to its stage peers.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.engine.execution.pipeline import StagePeers, take_verdict, with_stage_time
from outrider.workers.engine.execution.runner import RoundErrorContext, StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import Round, Verdict


class Verifier(Protocol):
    """Turns the last stage's hidden states into the round's verdict. Every rank of the last stage has one."""

    def begin(self, round: Round) -> None:
        """Called before the round runs."""
        ...

    def verify(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        """The verdict, and the accepted rows' hidden states."""
        ...

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Compiles grammars that sequences of later rounds will use."""
        ...


class PeerVerifier:
    """On the sampler's stage peers: computes their part of the logits and receives the verdict from the sampler."""

    def __init__(self, sampler: Sampler, source: StageLink) -> None:
        self._sampler, self._source = sampler, source

    def begin(self, round: Round) -> None:
        """Does nothing: only the sampler draws tokens."""

    def verify(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        self._sampler.compute_logits(round, hidden)
        verdict = take_verdict(self._source, round.round_id).verdict
        return verdict, self._sampler.accepted(round, hidden, verdict)

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        """Does nothing: only the sampler draws tokens."""


class BroadcastingVerifier:
    """On the sampler, if it has stage peers: sends them the verdict."""

    def __init__(self, sampler: Sampler, stage_peers: StagePeers) -> None:
        self._sampler, self._stage_peers = sampler, stage_peers

    def begin(self, round: Round) -> None:
        self._sampler.begin(round)

    def verify(self, round: Round, hidden: Tensor, stage_s: float) -> tuple[Verdict, Tensor]:
        verdict, accepted = self._sampler.verify(round, hidden, stage_s)
        self._stage_peers.broadcast(verdict)
        return verdict, accepted

    def prepare(self, constraints: Iterable[StructuredOutputsParams]) -> None:
        self._sampler.prepare(constraints)


def follow(runner: StageRunner, above: StageLink, onward: StageLink, verifier: Verifier | None) -> None:
    """The loop of a rank of a later stage: receives a round from `above`, runs it, sends it (or its verdict) `onward`.

    A round without sequences only carries grammars to compile, and gets no verdict.
    Returns when the leader stops; raises EngineStoppedError if a neighbouring rank fails.
    """
    while True:
        message = above.receive(deadline=False, waiting_for="a round")
        if not isinstance(message.content, Round):
            if verifier is None:
                onward.send(None, message.hidden)
                onward.flush()
            return
        round = message.content
        if not round.sequences:
            onward.send(round, message.hidden) if verifier is None else verifier.prepare(round.prepares)
            continue
        if verifier is not None:
            verifier.begin(round)
        hidden, took = runner.forward(round, message.hidden)
        round = runner.with_expert_answer(round)
        if verifier is None:
            onward.send(with_stage_time(round, took), hidden)
        else:
            onward.send(*verifier.verify(round, hidden, took))


class FirstStagePeer:
    """A stage peer of the leader: runs the rounds that the leader sends, and drafts after each verdict.

    `column`: with several stages, its links to the next stage and from the last.
    """

    def __init__(
        self,
        runner: StageRunner,
        source: StageLink,
        drafter: Drafter | None,
        sampler: Sampler | None,
        column: tuple[StageLink, StageLink] | None,
    ) -> None:
        self._runner, self._source, self._drafter = runner, source, drafter
        self._sampler, self._column = sampler, column
        self._under_way: deque[tuple[Round, Tensor]] = deque()

    def run(self) -> None:
        """Returns when the leader stops; raises EngineStoppedError if another rank fails."""
        while True:
            message = self._source.receive(deadline=False, waiting_for="a round")
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
            self._column[0].send(with_stage_time(round, took), hidden)
        elif self._sampler is not None:
            self._sampler.compute_logits(round, hidden)
        self._under_way.append((round, hidden if self._column is None else hidden[:0]))

    def _finish(self, verdict: Verdict) -> None:
        round, accepted = self._next_finished(verdict)
        while round.round_id != verdict.round_id:  # no verdict sent: the leader's drafting failed
            round, accepted = self._next_finished(verdict)
        if self._drafter is not None:
            self._drafter.forget(round.ends)
            with RoundErrorContext(round):
                self._drafter.draft(replace(round, draft_steps=verdict.draft_steps), verdict, accepted)

    def _next_finished(self, verdict: Verdict) -> tuple[Round, Tensor]:
        """The oldest round in flight and its accepted rows' states (perhaps none if `verdict` is of another round)."""
        round, hidden = self._under_way.popleft()
        if self._column is not None:
            return round, take_verdict(self._column[1], round.round_id).hidden
        if round.round_id != verdict.round_id:
            return round, hidden[:0]
        assert self._sampler is not None, "with one stage every rank has a sampler"
        return round, self._sampler.accepted(round, hidden, verdict)

    def _stop(self) -> None:
        if self._column is not None:
            self._column[0].send(None, torch.empty(0, 0))
            self._column[0].flush()
