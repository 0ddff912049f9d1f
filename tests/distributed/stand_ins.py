"""A rank without an engine, for tests of what happens around ranks: real actors, real processes, no model."""

import threading
import time
from dataclasses import replace

from fakes import FakeEngine

from outrider.workers.engine.handle import EngineInfo
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.serving.rpc.service import EngineServer
from outrider.workers.types.errors import CheckpointError

LONG = 100_000

INFO = EngineInfo(
    fingerprint="stand-in",
    max_model_len=64,
    vocab_size=16,
    dtype="float32",
    numerics="exact",
    speculation="off",
    has_mtp=False,
)


class IdleRank:
    """Gets ready at once and waits to be told to stop. Its leader claims an address where nobody listens."""

    def __init__(self, spec: RankSpec) -> None:
        self.spec = spec
        self._stop = threading.Event()
        self._status = RankStatus()

    def load(self) -> None:
        leader = self.spec.rank == 0
        address = f"{self.spec.service_host}:9" if leader else ""
        self._status = RankStatus(state="ready", loaded=1.0, service_address=address, info=INFO if leader else None)

    def run(self) -> None:
        self._stop.wait()

    def stop(self) -> None:
        self._stop.set()

    def status(self) -> RankStatus:
        return self._status

    def take_observations(self) -> list[Observation]:
        return []


class SpeakingRank(IdleRank):
    """Its leader serves a fake engine: real streams, some hundred tokens a second, no model."""

    def load(self) -> None:
        super().load()
        if self.spec.rank == 0:
            self._engine = FakeEngine(round_s=0.01, max_model_len=LONG, vocab_size=400)
            self._server = EngineServer(self._engine, str(self.spec.service_host))
            address = f"{self.spec.service_host}:{self._server.start()}"
            self._status = replace(self._status, service_address=address, info=self._engine.info)

    def status(self) -> RankStatus:
        status = super().status()
        return replace(status, counters=self._engine.counters) if status.info is not None else status

    def stop(self) -> None:
        if self._status.info is not None:
            self._server.stop()
            self._engine.close()
        super().stop()


class SlowRank(IdleRank):
    """Never gets to the end of its weights."""

    def load(self) -> None:
        self._stop.wait()


class SpeechlessRank(IdleRank):
    """After a while its last rank cannot say how it is."""

    def load(self) -> None:
        super().load()
        self._speaks_until = time.monotonic() + 1.5

    def status(self) -> RankStatus:
        if self._status.state == "ready" and self.spec.rank == 1 and time.monotonic() > self._speaks_until:
            raise LookupError("no words")
        return self._status


class FailingRank(SlowRank):
    """Its last rank finds its weights damaged; the others are still busy with theirs."""

    def load(self) -> None:
        if self.spec.rank == self.spec.world_size - 1:
            raise CheckpointError("checkpoint M is damaged: model.safetensors is truncated")
        super().load()
