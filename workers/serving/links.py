"""Chooses a rank's links: to the stages before and after it, and to the ranks of its stage that it gives commands."""

from collections.abc import Callable, Mapping
from functools import partial

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.engine.execution.followers import (
    BroadcastingVerifier,
    FirstStagePeer,
    PeerVerifier,
    Verifier,
    follow,
)
from outrider.workers.engine.execution.pipeline import StagePeers
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.parallel.mesh import Mesh, Route


class RankLinks:
    """The links of one rank, selected by its place in the mesh."""

    def __init__(self, rank: int, mesh: Mesh, links: Mapping[Route, StageLink]) -> None:
        self._rank, self._mesh, self._links = rank, mesh, links

    @property
    def column(self) -> tuple[StageLink, StageLink]:
        """The link from the previous stage and the link to the next, each with the rank at the same place there."""
        step, size = self._mesh.stage_size, self._mesh.size
        before, after = (self._rank - step) % size, (self._rank + step) % size
        return self._links[before, self._rank], self._links[self._rank, after]

    @property
    def stage_peers(self) -> StagePeers:
        """Links to the other ranks of this stage. Used by the leader and the sampler to send them commands."""
        others = [other for other in self._mesh.stage_group(self._rank) if other != self._rank]
        return StagePeers([self._links[self._rank, other] for other in others])

    def follower(self, runner: StageRunner, sampler: Sampler | None, mtp: Drafter | None) -> Callable[[], None]:
        """The main loop of a rank other than the leader. It returns when the leader stops."""
        if self._mesh.place(self._rank).stage == 0:
            return FirstStagePeer(runner, self._links[0, self._rank], mtp, sampler, self._first_stage_column()).run
        return partial(follow, runner, *self.column, self._verifier(sampler))

    def _first_stage_column(self) -> tuple[StageLink, StageLink] | None:
        """The link to the next stage and the link from the last stage; None with one stage."""
        if self._mesh.pipeline == 1:
            return None
        up, down = self.column
        return down, up

    def _verifier(self, sampler: Sampler | None) -> Verifier | None:
        if sampler is None or self._mesh.stage_size == 1:
            return sampler
        if self._rank == self._mesh.sampler:
            return BroadcastingVerifier(sampler, self.stage_peers)
        return PeerVerifier(sampler, self._links[self._mesh.sampler, self._rank])
