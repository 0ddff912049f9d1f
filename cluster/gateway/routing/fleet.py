"""A gateway's connections to replicas, updated from the routing table. router.py chooses among them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.gateway.routing import router
from outrider.cluster.gateway.routing.load import PrefixKeys
from outrider.cluster.gateway.routing.replica import ReplicaConnection
from outrider.cluster.gateway.routing.router import ReplicaId, RoutingCandidate, RoutingTable
from outrider.workers.serving.rpc.leader_client import LeaderClient
from outrider.workers.types import logs
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.gateway.fleet")


class Fleet:
    """All connected replicas. One event loop. Calls `on_change` when the set of ready replicas may have changed."""

    def __init__(
        self,
        on_change: Callable[[], None],
        reason_wait_s: float,
        key: str = "",
        on_end: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`reason_wait_s`: how long requests of a lost replica wait for the controller's reason.

        `key`: the cluster key. `on_end`: called with the reason when a replica ended.
        """
        self._on_end = on_end
        self._on_change = on_change
        self._reason_wait_s, self._key = reason_wait_s, key
        self._replicas: dict[ReplicaId, ReplicaConnection] = {}
        self._table = RoutingTable()
        self._change = asyncio.Event()  # set at the next change, then replaced by a new event
        self._stopped = False

    @property
    def draining(self) -> bool:
        return self._table.draining

    @property
    def ready(self) -> int:
        """Number of replicas that accept requests; 0 while the cluster drains."""
        return 0 if self.draining else sum(replica.ready for replica in self._replicas.values())

    @property
    def places(self) -> int:
        """How many outputs this gateway should have on replicas at the same time."""
        return sum(replica.places for replica in self._replicas.values())

    def apply(self, table: RoutingTable) -> None:
        """Connects to new replicas, and retires or ends removed ones."""
        self._replicas = {one: replica for one, replica in self._replicas.items() if not replica.closed}
        steps = router.changes(self._replicas.keys(), table)
        for one, reason in steps.end.items():
            logs.event(log, logging.WARNING, "replica ended", replica=one, reason=reason)
            self._replicas[one].end(reason)
            self._on_end(reason)
        for one in steps.retire:
            self._replicas[one].retire()
        for one, address in steps.connect.items():
            self._replicas[one] = ReplicaConnection(one, address, self._changed, self._reason_wait_s, self._key)
        self._table = table
        self._changed()

    def choose(
        self, prompt_tokens: int = 0, prefix: PrefixKeys | None = None, fingerprint: str | None = None
    ) -> ReplicaConnection:
        """The replica for the next request.

        Raises UnavailableError if no replica accepts requests, or none with this fingerprint is ready yet. Raises
        ValueError if no replica has this fingerprint.
        """
        if self.draining:
            raise UnavailableError("the cluster is draining")
        candidates = self._candidates(prefix)
        if fingerprint is not None:
            found = router.successor(candidates, self._table, fingerprint, prompt_tokens)
            if isinstance(found, router.Never):
                raise ValueError(f"resume.fingerprint: {found.reason}")
        else:
            found = router.choose(candidates, prompt_tokens) or router.NoReplicaYet()
        if isinstance(found, router.NoReplicaYet):
            raise UnavailableError("no replica is ready: try again later")
        return self._replicas[found]

    async def successor(
        self, lost: LeaderClient | None, fingerprint: str, prompt_tokens: int, prefix: PrefixKeys, wait_s: float
    ) -> ReplicaConnection:
        """The replica on which a request continues; waits for one that is starting.

        `lost`: the request's broken connection, if it had one. Raises UnavailableError if there is none, with a reason.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            change = self._change
            found = router.successor(self._candidates(prefix, lost), self._table, fingerprint, prompt_tokens)
            if isinstance(found, ReplicaId):
                return self._replicas[found]
            if isinstance(found, router.Never):
                raise UnavailableError(found.reason)
            if self._stopped:
                raise UnavailableError("the gateway shut down before the request finished: send it again")
            if loop.time() >= until:
                raise UnavailableError(f"no replica could continue it within {wait_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(change.wait(), until - loop.time())

    def stop_waiting(self) -> None:
        """Ends every wait for a successor with UnavailableError."""
        self._stopped = True
        self._changed()

    def _candidates(
        self, prefix: PrefixKeys | None, lost: LeaderClient | None = None
    ) -> dict[ReplicaId, RoutingCandidate]:
        return {
            one: RoutingCandidate(
                load_tokens=replica.load.tokens,
                cached_tokens=replica.load.cached_tokens(prefix) if prefix is not None else 0,
                fingerprint=replica.info.fingerprint,
            )
            for one, replica in self._replicas.items()
            if replica.ready and replica.client is not lost
        }

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        self._on_change()

    async def swap_drafters(self, checkpoint: str) -> list[str]:
        """Loads `checkpoint`'s MTP module in all ready replicas, one after the other. Returns their names.

        Raises UnavailableError if no replica is ready, OutriderError or EngineStoppedError at the first that fails.
        """
        ready = [(one, replica) for one, replica in self._replicas.items() if replica.ready]
        if not ready:
            raise UnavailableError("no replica is ready: try again later")
        for one, replica in ready:
            try:
                await replica.client.swap_drafter(checkpoint)
            except OutriderError as error:
                raise type(error)(f"replica {one}: {error}") from error
        return [one.name for one, _ in ready]

    async def counters(self, timeout_s: float) -> list[EngineCounters]:
        """Counters of the ready replicas that answer within the timeout."""
        calls = (replica.client.ask(timeout_s) for replica in self._replicas.values() if replica.ready)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [answer[1] for answer in answers if not isinstance(answer, BaseException)]

    async def close(self) -> None:
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
