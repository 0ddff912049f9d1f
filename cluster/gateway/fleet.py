"""The replicas that a gateway is connected to. Follows the routing table; the choice itself is router.py's."""

import asyncio
import logging
from collections.abc import Callable

from outrider.cluster import logs
from outrider.cluster.errors import UnavailableError
from outrider.cluster.gateway import router
from outrider.cluster.gateway.replica import Replica
from outrider.cluster.gateway.router import ReplicaId, RoutingTable

log = logging.getLogger("outrider.gateway.fleet")


class Fleet:
    """One event loop. `on_change` is called whenever what is ready may have changed."""

    def __init__(self, on_change: Callable[[], None], reason_wait_s: float, key: str = "") -> None:
        """`reason_wait_s`: how long requests of a lost replica wait for the controller to say why; `key`: the
        cluster's."""
        self._on_change = on_change
        self._reason_wait_s, self._key = reason_wait_s, key
        self._replicas: dict[ReplicaId, Replica] = {}
        self.draining = False

    @property
    def ready(self) -> int:
        """How many replicas take requests; none while the cluster drains."""
        return 0 if self.draining else sum(replica.ready for replica in self._replicas.values())

    def apply(self, table: RoutingTable) -> None:
        """Connects to new replicas, and lets go of those that the controller has taken out."""
        self._replicas = {one: replica for one, replica in self._replicas.items() if not replica.closed}
        steps = router.changes(self._replicas.keys(), table)
        for one, reason in steps.end.items():
            logs.event(log, logging.WARNING, "replica ended", replica=one, reason=reason)
            self._replicas[one].end(reason)
        for one in steps.retire:
            self._replicas[one].retire()
        for one, address in steps.connect.items():
            self._replicas[one] = Replica(one, address, self._on_change, self._reason_wait_s, self._key)
        self.draining = table.draining
        self._on_change()

    def choose(self) -> Replica:
        """Where the next request goes. UnavailableError if no replica takes any."""
        ready = [] if self.draining else [one for one, replica in self._replicas.items() if replica.ready]
        chosen = router.choose({one: self._replicas[one].client.live for one in ready}, ready)
        if chosen is None:
            raise UnavailableError(
                "the cluster is draining" if self.draining else "no replica is ready: try again later"
            )
        return self._replicas[chosen]

    async def close(self) -> None:
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
