"""Executes the actions that reconcile.py returned for a replica, and updates the routing table. Makes no decisions."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from outrider.cluster.controller.reconcile import Action, End, Phase, Publish, Retire, Start, Stop
from outrider.cluster.controller.record import RecordWriter
from outrider.cluster.controller.replicas.replica import Replica
from outrider.cluster.controller.routes import Ending, RouteTable
from outrider.workers.types import logs

log = logging.getLogger("outrider.controller")


class ActionRunner:
    """Runs the actions of each replica in order, one list at a time."""

    def __init__(
        self, table: RouteTable, record: RecordWriter, pending: Callable[[], int], on_ready: Callable[[], None]
    ) -> None:
        """`pending`: number of replicas being started, for the gateways. `on_ready`: called when a replica is ready."""
        self._table, self._record, self._pending, self._on_ready = table, record, pending, on_ready
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        return tuple(self._tasks.values())

    def busy(self, replica: str) -> bool:
        return replica in self._tasks and not self._tasks[replica].done()

    def begin(self, replica: Replica, actions: Sequence[Action]) -> None:
        """Starts the actions of a replica. No action of it may be running."""
        self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
        if actions:
            self._tasks[replica.name] = asyncio.create_task(self._run(replica, actions))

    async def _run(self, replica: Replica, actions: Sequence[Action]) -> None:
        for action in actions:
            names = {"replica": replica.name, "generation": replica.generation}
            logs.event(log, logging.INFO, "replica action", **names, action=action)
            try:
                await self._perform(replica, action)
            except Exception:
                log.exception("%s: an action failed; the next tick decides again", replica.name)

    async def _perform(self, replica: Replica, action: Action) -> None:
        match action:
            case Start():
                replica.start()
            case Publish():
                replica.ready()
                self._on_ready()
                await self._record.write()  # first, so that a restarted controller knows the routes that gateways have
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
        """Removes the generation's route, with the reason for the gateways. Does nothing if `reason` is empty."""
        if reason:
            ending = Ending(replica=replica.name, generation=replica.generation, reason=reason)
            await self._table.withdraw(ending, pending=self._pending())
