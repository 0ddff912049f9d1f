"""What a loaded rank does: lead (schedule, draft, serve) or follow (run rounds as they come)."""

from collections.abc import Callable

from outrider.workers.engine.engine import Engine
from outrider.workers.engine.pipeline import follow
from outrider.workers.engine.request import EngineCounters
from outrider.workers.engine.runner import StageRunner
from outrider.workers.engine.sampler import Sampler
from outrider.workers.parallel import groups
from outrider.workers.parallel.stage_link import StageLink
from outrider.workers.request_times import RequestTimes, TimedEngine
from outrider.workers.service import LeaderDoor


class Leader:
    """Rank 0: owns the engine and, where it has a `door`, serves it over gRPC."""

    def __init__(
        self, *, engine: Engine, runner: StageRunner, sampler: Sampler | None, door: LeaderDoor | None
    ) -> None:
        self.engine = engine
        self.times = RequestTimes()
        self._runner, self._sampler, self._door = runner, sampler, door

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Warms up, opens the door (`on_ready` gets its address, or ""), serves until stopped."""
        self.engine.warm_up()
        server = self._door.serve(TimedEngine(self.engine, self.times)) if self._door else None
        try:
            on_ready(f"{self._door.host}:{server.start()}" if self._door and server else "")
            self.engine.run()
        finally:
            if server:
                server.stop()
            groups.leave()

    def stop(self, reason: str) -> None:
        self.engine.stop(reason)

    @property
    def draft_s(self) -> float:
        return self.engine.times.by_part["draft"]

    @property
    def busy_s(self) -> float:
        return self._runner.busy_s + self.draft_s + (self._sampler.busy_s if self._sampler else 0.0)

    @property
    def counters(self) -> EngineCounters:
        return self.engine.counters


class Follower:
    """A rank of a later stage. Ends when the leader says so; its process may also simply be ended."""

    def __init__(self, *, runner: StageRunner, above: StageLink, onward: StageLink, sampler: Sampler | None) -> None:
        self._runner, self._above, self._onward, self._sampler = runner, above, onward, sampler
        self.engine = None
        self.draft_s = 0.0
        self.counters = EngineCounters()
        self.times = RequestTimes()  # stays empty: requests are the leader's

    def run(self, on_ready: Callable[[str], None]) -> None:
        on_ready("")
        try:
            follow(self._runner, self._above, self._onward, self._sampler)
        finally:
            groups.leave()

    def stop(self, reason: str) -> None:
        """Nothing to do: the leader's stop travels down the stages."""

    @property
    def busy_s(self) -> float:
        return self._runner.busy_s + (self._sampler.busy_s if self._sampler else 0.0)
