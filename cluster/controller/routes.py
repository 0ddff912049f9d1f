"""The routing table that the controller streams to its gateways. Plain asyncio; knows nothing of gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

_REMEMBERED_ENDINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A replica that accepts requests, and its leader's address."""

    replica: str
    generation: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a generation of a replica ended."""

    replica: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """An update for a gateway: all routes, and the endings that it has not received yet."""

    routes: tuple[Route, ...]
    ended: tuple[Ending, ...]
    draining: bool
    version: int
    pending: int = 0  # replicas that are being started, or will be started


class RouteTable:
    """Holds the current table and notifies its watchers. One asyncio loop."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._endings: list[tuple[int, Ending]] = []  # with the table version that added them
        self._draining = False
        self._pending = 0
        self._version = 1
        self._changed = asyncio.Condition()

    async def publish(self, route: Route, *, pending: int = 0) -> None:
        """`pending`, here and below: the new number of replicas that are being started, or will be started."""
        async with self._change(pending):
            self._routes[route.replica] = route

    async def withdraw(self, ending: Ending, *, pending: int = 0) -> None:
        async with self._change(pending):
            self._routes.pop(ending.replica, None)
            self._endings = [*self._endings, (self._version, ending)][-_REMEMBERED_ENDINGS:]

    async def retire(self, replica: str, *, pending: int = 0) -> None:
        """No new requests for this replica; running requests continue."""
        async with self._change(pending):
            self._routes.pop(replica, None)

    async def expect(self, pending: int) -> None:
        if pending != self._pending:
            async with self._change(pending):
                pass

    async def drain(self) -> None:
        """No new requests for any replica. Routes stay, so that running requests can move."""
        async with self._change(0):
            self._draining = True

    @contextlib.asynccontextmanager
    async def _change(self, pending: int) -> AsyncIterator[None]:
        """A context in which the table may be changed. Afterwards it has a new version, and watchers are notified."""
        async with self._changed:
            self._version += 1
            self._pending = pending
            yield
            self._changed.notify_all()

    async def watch(self) -> AsyncIterator[Table]:
        """The current table, then each changed one. A slow watcher may miss tables, but no ending."""
        seen = 0
        while True:
            async with self._changed:
                while self._version == seen:
                    await self._changed.wait()
                table = self._since(seen)
                seen = self._version
            yield table

    def _since(self, seen: int) -> Table:
        return Table(
            routes=tuple(self._routes.values()),
            ended=tuple(ending for version, ending in self._endings if version > seen),
            draining=self._draining,
            version=self._version,
            pending=self._pending,
        )
