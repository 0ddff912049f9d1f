"""Which of a rank's links serve what: down and up its column of stages, and to the ranks that it tells what to do."""

from collections.abc import Callable, Mapping
from functools import partial

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.engine.followers import Assistant, TellingJudge, ToldJudge, Verifier, follow
from outrider.workers.engine.pipeline import Fellows
from outrider.workers.engine.runner import StageRunner
from outrider.workers.engine.sampler import Sampler
from outrider.workers.parallel.mesh import Mesh, Route
from outrider.workers.parallel.stage_link import StageLink


class Wires:
    """One rank's links, by where it stands."""

    def __init__(self, rank: int, mesh: Mesh, links: Mapping[Route, StageLink]) -> None:
        self._rank, self._mesh, self._links = rank, mesh, links

    @property
    def column(self) -> tuple[StageLink, StageLink]:
        """From the rank at this one's place in the stage before, and to that of the stage after."""
        step, size = self._mesh.stage_size, self._mesh.size
        before, after = (self._rank - step) % size, (self._rank + step) % size
        return self._links[before, self._rank], self._links[self._rank, after]

    @property
    def fellows(self) -> Fellows:
        """The other ranks of this one's stage: the leader's, or the sampler's, which tells them what to do."""
        others = [other for other in self._mesh.stage_group(self._rank) if other != self._rank]
        return Fellows([self._links[self._rank, other] for other in others])

    def follower(self, runner: StageRunner, sampler: Sampler | None, mtp: Drafter | None) -> Callable[[], None]:
        """What a rank other than the leader does until it is told to stop."""
        if self._mesh.place(self._rank).stage == 0:
            return Assistant(runner, self._links[0, self._rank], mtp, sampler, self._column_of_the_first()).run
        return partial(follow, runner, *self.column, self._judge(sampler))

    def _column_of_the_first(self) -> tuple[StageLink, StageLink] | None:
        """To the next stage and from the last, if there are others."""
        if self._mesh.pipeline == 1:
            return None
        up, down = self.column
        return down, up

    def _judge(self, sampler: Sampler | None) -> Verifier | None:
        if sampler is None or self._mesh.stage_size == 1:
            return sampler
        if self._rank == self._mesh.sampler:
            return TellingJudge(sampler, self.fellows)
        return ToldJudge(sampler, self._links[self._mesh.sampler, self._rank])
