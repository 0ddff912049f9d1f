"""The two roles of a loaded rank: the leader schedules, drafts and serves; a follower runs the rounds it receives."""

import gc
from collections.abc import Callable
from dataclasses import replace

from outrider.workers.engine.engine import Engine
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import total_traffic
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.serving.observability.request_journal import RequestJournal
from outrider.workers.serving.observability.request_times import RequestTimes, TimedEngine
from outrider.workers.serving.rpc.service import LeaderEndpoint
from outrider.workers.text.grammar_check import GrammarChecker
from outrider.workers.types.counters import EngineCounters


class _Role:
    """What ranks of both roles say of their work."""

    _runner: StageRunner
    _sharing: Sharing

    @property
    def computing_s(self) -> float:
        """How long it has been at its stage of a round; 0 while it waits."""
        return self._runner.computing_s

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Of the collectives, by purpose."""
        return total_traffic(self._sharing.groups)

    @property
    def carriers(self) -> str:
        """Of the collectives, in words."""
        return self._sharing.carriers


class Leader(_Role):
    """Rank 0: owns the engine and, where it has a `endpoint`, serves it over gRPC."""

    def __init__(
        self,
        *,
        engine: Engine,
        runner: StageRunner,
        sampler: Sampler | None,
        sharing: Sharing,
        endpoint: LeaderEndpoint | None,
        times: RequestTimes,
        journal: RequestJournal,
        checker: GrammarChecker,
    ) -> None:
        self.engine = engine
        self.times = times
        self._journal, self._checker = journal, checker
        self._runner, self._sampler, self._sharing, self._endpoint = runner, sampler, sharing, endpoint

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Warms up, starts the gRPC service, serves until stopped. `on_ready` gets the service's address, or ""."""
        self.engine.warm_up()
        if self._endpoint:  # the process runs only this engine
            gc.freeze()  # a full collection over these long-lived objects would delay a round by tens of milliseconds
        server = self._endpoint.serve(TimedEngine(self.engine, self.times)) if self._endpoint else None
        self._journal.start()
        try:
            on_ready(f"{self._endpoint.host}:{server.start()}" if self._endpoint and server else "")
            self.engine.run()
        finally:
            if server:
                server.stop()
            groups.leave()
            self._checker.close()
            self._journal.close()

    def stop(self, reason: str) -> None:
        self.engine.stop(reason)

    @property
    def stall(self) -> str:
        return self.engine.progress.stall()

    @property
    def draft_s(self) -> float:
        return self.engine.times.by_part["draft"]

    @property
    def busy_s(self) -> float:
        return self._runner.busy_s + self.draft_s + (self._sampler.busy_s if self._sampler else 0.0)

    @property
    def held_up_s(self) -> float:
        """Longest delay of a round by a command to move experts, for making the command or for carrying it out."""
        return max(self._runner.held_up_s, self.engine.ordering.seconds)

    @property
    def counters(self) -> EngineCounters:
        """The engine's, and how long requests wait, as their times say."""
        return replace(self.engine.counters, oldest_wait_s=self.times.oldest_wait_s())


class Follower(_Role):
    """Any other rank. Ends when the leader says so; its process may also simply be ended.

    `live` is its main loop; `sampler` is given if the rank computes logits.
    """

    def __init__(
        self, *, live: Callable[[], None], runner: StageRunner, sampler: Sampler | None, sharing: Sharing
    ) -> None:
        self._live, self._runner, self._sampler, self._sharing = live, runner, sampler, sharing
        self.engine = None
        self.draft_s = 0.0
        self.stall = ""  # only the leader reports stalls
        self.counters = EngineCounters()
        self.times = RequestTimes()  # stays empty: only the leader has requests

    def run(self, on_ready: Callable[[str], None]) -> None:
        on_ready("")
        try:
            self._live()
        finally:
            groups.leave()

    def stop(self, reason: str) -> None:
        """Does nothing: the leader's stop reaches every rank."""

    @property
    def busy_s(self) -> float:
        return self._runner.busy_s + (self._sampler.busy_s if self._sampler else 0.0)

    @property
    def held_up_s(self) -> float:
        return self._runner.held_up_s
