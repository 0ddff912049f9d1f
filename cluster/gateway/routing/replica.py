"""A gateway's connection to one replica's leader. Reconnects until the controller removes the replica."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from outrider.cluster.gateway.routing.load import ReplicaLoad
from outrider.cluster.gateway.routing.router import ReplicaId
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.serving.rpc.leader_client import LeaderClient
from outrider.workers.types import logs
from outrider.workers.types.errors import EngineStoppedError

log = logging.getLogger("outrider.gateway.replica")

_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.5


class ReplicaConnection:
    """Connects immediately, and reconnects when the stream breaks. One event loop."""

    def __init__(
        self, replica_id: ReplicaId, address: str, on_change: Callable[[], None], reason_wait_s: float, key: str = ""
    ) -> None:
        """`reason_wait_s`: how long `end_reason` waits for the controller's reason. `key`: the cluster key."""
        self.id = replica_id
        self.address = address
        self._key = key
        self._on_change = on_change
        self.client = LeaderClient(address, key, on_change)
        self.load = ReplicaLoad()
        self._reason_wait_s = reason_wait_s
        self._ready = False
        self._retired = asyncio.Event()
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_connected(), name=f"replica {replica_id}")

    @property
    def ready(self) -> bool:
        """Whether requests may be sent to it."""
        ended = self.client.engine_ended or self.client.broken.is_set()
        return self._ready and not ended and not self._retired.is_set()

    @property
    def places(self) -> int:
        """How many outputs this gateway should have on it at the same time."""
        return self.client.places if self.ready else 0

    @property
    def info(self) -> EngineInfo:
        return self.client.info

    def retire(self) -> None:
        """Sends no new requests. Running requests continue; the connection closes after the last one."""
        self._retired.set()

    def end(self, reason: str) -> None:
        """The replica has ended for this reason; its requests must move."""
        if not self._reason.done():
            self._reason.set_result(reason)
        self._task.cancel()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def closed(self) -> bool:
        return self._task.done()

    async def end_reason(self, error: str) -> str:
        """Why the replica ended: the controller's reason if it arrives in time, else `error`."""
        with contextlib.suppress(TimeoutError):
            reason = await asyncio.wait_for(asyncio.shield(self._reason), self._reason_wait_s)
            return f"replica {self.id} ended: {reason}"
        return f"replica {self.id}: {error}"

    async def _keep_connected(self) -> None:
        try:
            while not self._retired.is_set():
                await self._stay_connected()
                await asyncio.sleep(_RETRY_S)
                await self.client.close()
                self.client = LeaderClient(self.address, self._key, self._on_change)
        finally:
            self._set_ready(False)
            await self.client.close()

    async def _stay_connected(self) -> None:
        """Connects, and returns when the stream breaks, or when a retired replica's last request has ended."""
        try:
            await self.client.connect(_CONNECT_TIMEOUT_S)
        except EngineStoppedError as error:
            logs.event(log, logging.WARNING, "cannot reach the leader", replica=self.id, reason=error)
            return
        logs.event(log, logging.INFO, "replica connected", replica=self.id, address=self.address)
        self._set_ready(True)
        waits = [asyncio.create_task(event.wait()) for event in (self.client.broken, self._retired)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self._set_ready(False)
            while self.client.live and not self.client.broken.is_set():
                await asyncio.sleep(0.05)
        finally:
            for wait in waits:
                wait.cancel()
        logs.event(log, logging.INFO, "replica disconnected", replica=self.id)

    def _set_ready(self, ready: bool) -> None:
        if self._ready != ready:
            self._ready = ready
            self._on_change()
