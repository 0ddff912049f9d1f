"""How the leader gets a Verdict for a Round: in this process, or through later pipeline stages.

Verdicts return in the order of their rounds. Up to `lanes` rounds may be in flight.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.round import Round, Verdict

_NO_STATES = torch.empty(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """A finished round: its verdict, and the accepted rows' hidden states for Drafter.draft."""

    verdict: Verdict
    hidden: Tensor


class Pipeline(Protocol):
    lanes: int

    @property
    def returns_early(self) -> bool:
        """Whether `dispatch` returns while this rank's device still runs the round."""
        ...

    def dispatch(self, round: Round) -> None:
        """Starts a round. Others may be in flight."""
        ...

    def collect(self) -> RoundResult:
        """Waits for the oldest round in flight. Raises EngineStoppedError that names the rank that did not answer."""
        ...

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        """Makes the sampler compile these grammars in the background, when there is no round to send them with."""
        ...

    def close(self) -> None:
        """Stops the other ranks, if any."""
        ...


class StagePeers:
    """The other ranks of this one's stage, which follow its commands. Without peers, `broadcast` sends nothing."""

    def __init__(self, links: Sequence[StageLink] = ()) -> None:
        self._links = links

    def broadcast(self, content: Round | Verdict | None) -> None:
        """Sends a round to run, a verdict to draft after (or to pass on), or None to stop."""
        for link in self._links:
            link.send(content, _NO_STATES)

    def flush(self) -> None:
        for link in self._links:
            link.flush()


class SingleStage:
    """A pipeline of one stage. On a GPU `dispatch` enqueues a round and `collect` waits for its tokens."""

    lanes = 1

    def __init__(
        self,
        runner: StageRunner,
        sampler: Sampler,
        stage_peers: StagePeers | None = None,
        *,
        broadcasts_verdicts: bool = True,
    ) -> None:
        """`broadcasts_verdicts`: False if the drafter broadcasts them to the stage peers."""
        self._runner, self._sampler, self._stage_peers = runner, sampler, stage_peers or StagePeers()
        self._broadcasts_verdicts = broadcasts_verdicts
        self._under_way: deque[tuple[Round, Tensor, float]] = deque()

    @property
    def returns_early(self) -> bool:
        return self._runner.returns_early

    def dispatch(self, round: Round) -> None:
        self._stage_peers.broadcast(round)
        self._sampler.begin(round)
        hidden, took = self._runner.forward(round, None)
        round = self._runner.with_expert_answer(round)
        self._sampler.draw(round, hidden)
        self._under_way.append((round, hidden, took))

    def collect(self) -> RoundResult:
        verdict, accepted = self._sampler.verdict(*self._under_way.popleft())
        if self._broadcasts_verdicts:
            self._stage_peers.broadcast(verdict)
        return RoundResult(verdict=verdict, hidden=accepted)

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        """Does nothing: the sampler is in this process and has compiled them already."""

    def close(self) -> None:
        self._under_way.clear()
        self._stage_peers.broadcast(None)
        self._stage_peers.flush()


class FirstStage:
    """The first of several stages: sends rounds to the next stage, receives verdicts from the last."""

    def __init__(
        self,
        runner: StageRunner,
        lanes: int,
        down: StageLink,
        up: StageLink,
        stage_peers: StagePeers | None = None,
        *,
        broadcasts_verdicts: bool = True,
    ) -> None:
        """`broadcasts_verdicts`: False if the drafter broadcasts them to the stage peers."""
        self.returns_early = False
        self.lanes, self._broadcasts_verdicts = lanes, broadcasts_verdicts
        self._runner, self._down, self._up, self._stage_peers = runner, down, up, stage_peers or StagePeers()
        self._under_way: deque[int] = deque()

    def dispatch(self, round: Round) -> None:
        self._stage_peers.broadcast(round)
        hidden, took = self._runner.forward(round, None)
        self._down.send(with_stage_time(self._runner.with_expert_answer(round), took), hidden)
        self._under_way.append(round.round_id)

    def collect(self) -> RoundResult:
        result = take_verdict(self._up, self._under_way.popleft())
        if self._broadcasts_verdicts:
            self._stage_peers.broadcast(result.verdict)
        return result

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        self._down.send(Round(prepares=constraints), _NO_STATES)

    def close(self) -> None:
        self._stage_peers.broadcast(None)
        self._down.send(None, _NO_STATES)
        self._down.flush()
        self._stage_peers.flush()


def take_verdict(link: StageLink, round_id: int) -> RoundResult:
    """Receives the round's verdict. Raises EngineStoppedError if the next message is anything else."""
    message = link.receive(deadline=True, waiting_for=f"the verdict of round {round_id}")
    if not isinstance(message.content, Verdict) or message.content.round_id != round_id:
        raise EngineStoppedError(f"expected the verdict of round {round_id}, got {message.content!r}")
    return RoundResult(verdict=message.content, hidden=message.hidden)


def with_stage_time(round: Round, took: float) -> Round:
    """The round with this stage's seconds added."""
    return replace(round, stage_s=np.append(round.stage_s, took))
