"""How the leader gets a Verdict for a Round: from this process alone, or through the stages after it.

Rounds go in and verdicts come out in the same order. Up to `lanes` rounds may be under way.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.runner import StageRunner
from outrider.workers.engine.sampler import Sampler
from outrider.workers.parallel.stage_link import StageLink
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.round import Round, Verdict
from outrider.workers.types.structured_outputs import StructuredOutputsParams

_NO_STATES = torch.empty(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """A finished round: its verdict, and its accepted rows' hidden states as Drafter.draft takes them."""

    verdict: Verdict
    hidden: Tensor


class Pipeline(Protocol):
    lanes: int

    @property
    def returns_early(self) -> bool:
        """Whether `dispatch` returns while this rank's device still runs the round."""
        ...

    def dispatch(self, round: Round) -> None:
        """Starts a round. It is not an error to dispatch while others are under way."""
        ...

    def collect(self) -> RoundResult:
        """Waits for the oldest round under way. EngineStoppedError names the rank that failed to answer."""
        ...

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        """Lets the sampler compile these beside the rounds: sequences will begin under them, and no round says so."""
        ...

    def close(self) -> None:
        """Tells the other stages, if any, to stop."""
        ...


class StagePeers:
    """The other ranks of this one's stage, which follow its commands. Without peers, `broadcast` sends nothing."""

    def __init__(self, links: Sequence[StageLink] = ()) -> None:
        self._links = links

    def broadcast(self, content: Round | Verdict | None) -> None:
        """A round to run, a verdict to draft after (or to pass on), or None: stop."""
        for link in self._links:
            link.send(content, _NO_STATES)

    def flush(self) -> None:
        for link in self._links:
            link.flush()


class SingleStage:
    """All layers in this stage. On a GPU `dispatch` enqueues a round and `collect` waits for its tokens."""

    lanes = 1

    def __init__(
        self,
        runner: StageRunner,
        sampler: Sampler,
        stage_peers: StagePeers | None = None,
        *,
        broadcasts_verdicts: bool = True,
    ) -> None:
        """`broadcasts_verdicts`: False where the drafter broadcasts them to the stage peers."""
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
        round = self._runner.answered(round)
        self._sampler.draw(round, hidden)
        self._under_way.append((round, hidden, took))

    def collect(self) -> RoundResult:
        verdict, accepted = self._sampler.verdict(*self._under_way.popleft())
        if self._broadcasts_verdicts:
            self._stage_peers.broadcast(verdict)
        return RoundResult(verdict=verdict, hidden=accepted)

    def announce(self, constraints: tuple[StructuredOutputsParams, ...]) -> None:
        """Nothing to say: the sampler is here, and so are its grammars."""

    def close(self) -> None:
        self._under_way.clear()
        self._stage_peers.broadcast(None)
        self._stage_peers.flush()


class FirstStage:
    """The first of several stages: sends rounds down, takes verdicts from the last."""

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
        """`broadcasts_verdicts`: False where the drafter broadcasts them to the stage peers."""
        self.returns_early = False
        self.lanes, self._broadcasts_verdicts = lanes, broadcasts_verdicts
        self._runner, self._down, self._up, self._stage_peers = runner, down, up, stage_peers or StagePeers()
        self._under_way: deque[int] = deque()

    def dispatch(self, round: Round) -> None:
        self._stage_peers.broadcast(round)
        hidden, took = self._runner.forward(round, None)
        self._down.send(passed(self._runner.answered(round), took), hidden)
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
    """The round's, which must be the next to come. EngineStoppedError if it does not."""
    message = link.receive(deadline=True, waiting_for=f"the verdict of round {round_id}")
    if not isinstance(message.content, Verdict) or message.content.round_id != round_id:
        raise EngineStoppedError(f"expected the verdict of round {round_id}, got {message.content!r}")
    return RoundResult(verdict=message.content, hidden=message.hidden)


def passed(round: Round, took: float) -> Round:
    """The round with one more stage's seconds."""
    return replace(round, stage_s=np.append(round.stage_s, took))
