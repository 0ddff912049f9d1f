"""The routing table that the controller streams to its gateways. Plain asyncio; knows nothing of gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

_REMEMBERED_ENDINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A replica that takes requests, and where its leader listens."""

    replica: str
    generation: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a generation of a replica is no more."""

    replica: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a gateway is told: every route there is, and the endings it has not heard of."""

    routes: tuple[Route, ...]
    ended: tuple[Ending, ...]
    draining: bool
    version: int
    pending: int = 0  # replicas that are being started, or will be


class RouteTable:
    """Holds the current table and wakes those who watch it. One asyncio loop."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._endings: list[tuple[int, Ending]] = []  # with the version that brought them
        self._draining = False
        self._pending = 0
        self._version = 1
        self._changed = asyncio.Condition()

    async def publish(self, route: Route, *, pending: int = 0) -> None:
        """`pending`, here and below: replicas that are being started from now on, or will be."""
        async with self._change(pending):
            self._routes[route.replica] = route

    async def withdraw(self, ending: Ending, *, pending: int = 0) -> None:
        async with self._change(pending):
            self._routes.pop(ending.replica, None)
            self._endings = [*self._endings, (self._version, ending)][-_REMEMBERED_ENDINGS:]

    async def retire(self, replica: str, *, pending: int = 0) -> None:
        """No new requests to this one; those that it has go on."""
        async with self._change(pending):
            self._routes.pop(replica, None)

    async def expect(self, pending: int) -> None:
        if pending != self._pending:
            async with self._change(pending):
                pass

    async def drain(self) -> None:
        """No new requests anywhere; routes stay for those that run."""
        async with self._change(0):
            self._draining = True

    @contextlib.asynccontextmanager
    async def _change(self, pending: int) -> AsyncIterator[None]:
        """A new version of the table, made inside; those who watch wake after it."""
        async with self._changed:
            self._version += 1
            self._pending = pending
            yield
            self._changed.notify_all()

    async def watch(self) -> AsyncIterator[Table]:
        """The table now, then again after every change; a slow watcher skips tables but no ending."""
        heard = 0
        while True:
            async with self._changed:
                while self._version == heard:
                    await self._changed.wait()
                table = self._since(heard)
                heard = self._version
            yield table

    def _since(self, heard: int) -> Table:
        return Table(
            routes=tuple(self._routes.values()),
            ended=tuple(ending for version, ending in self._endings if version > heard),
            draining=self._draining,
            version=self._version,
            pending=self._pending,
        )
