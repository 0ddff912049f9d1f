"""Carries out the actions decided about replicas, and tells the gateways. Decides nothing."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from outrider.cluster.controller.reconcile import Action, End, Phase, Publish, Retire, Start, Stop
from outrider.cluster.controller.record import RecordKeeper
from outrider.cluster.controller.replica import Replica
from outrider.cluster.controller.routes import Ending, RouteTable
from outrider.workers.types import logs

log = logging.getLogger("outrider.controller")


class Acting:
    """Runs one set of actions per replica at a time, each to its end."""

    def __init__(
        self, table: RouteTable, record: RecordKeeper, pending: Callable[[], int], on_ready: Callable[[], None]
    ) -> None:
        """`pending`: replicas being started, for the gateways. `on_ready` is called for each that begins to serve."""
        self._table, self._record, self._pending, self._on_ready = table, record, pending, on_ready
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        return tuple(self._tasks.values())

    def busy(self, replica: str) -> bool:
        return replica in self._tasks and not self._tasks[replica].done()

    def begin(self, replica: Replica, actions: Sequence[Action]) -> None:
        """Starts the actions of a replica that has none running."""
        self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
        if actions:
            self._tasks[replica.name] = asyncio.create_task(self._act(replica, actions))

    async def _act(self, replica: Replica, actions: Sequence[Action]) -> None:
        for action in actions:
            names = {"replica": replica.name, "generation": replica.generation}
            logs.event(log, logging.INFO, "replica acts", **names, action=action)
            try:
                await self._take(replica, action)
            except Exception:
                log.exception("%s: an action failed; the next tick decides again", replica.name)

    async def _take(self, replica: Replica, action: Action) -> None:
        match action:
            case Start():
                replica.start()
            case Publish():
                replica.ready()
                self._on_ready()
                await self._record.write()  # first, so that a restarted controller knows what gateways were told
                await self._table.publish(replica.route, pending=self._pending())
            case Retire():
                replica.retired()
                await self._record.write()
                await self._table.retire(replica.name, pending=self._pending())
            case End(reason):
                published = replica.phase in (Phase.READY, Phase.DRAINING)
                replica.failed(reason)
                await self._withdraw(replica, reason if published else "")
                await replica.destroy(gently=False)
            case Stop(reason):
                gently = replica.phase is not Phase.STARTING
                replica.phase = Phase.DRAINING
                await self._withdraw(replica, reason)
                await replica.destroy(gently=gently)
                replica.phase = Phase.ABSENT

    async def _withdraw(self, replica: Replica, reason: str) -> None:
        """Tells the gateways that the generation ended, and why; without a reason nothing is told."""
        if reason:
            ending = Ending(replica=replica.name, generation=replica.generation, reason=reason)
            await self._table.withdraw(ending, pending=self._pending())
