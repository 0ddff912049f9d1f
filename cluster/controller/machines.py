"""Who provides the machines that replicas run on, and the task that keeps telling them how many are wanted."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.types import logs

log = logging.getLogger("outrider.machines")
TELL_EVERY_S = 1.0
RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Replicas that need machines, those that still drain included, and the hosts that none of them uses any more."""

    replicas: int
    unused_hosts: tuple[str, ...] = ()


class MachineProvider(Protocol):
    """Blocks while it works; called from a thread, one call at a time."""

    def provide(self, need: Need) -> None:
        """Makes it so, or begins to. OutriderError says why it cannot."""
        ...


class RayPlacement:
    """Ray itself: gangs that wait for room are its autoscaler's demand, and nodes without work are its to remove."""

    def provide(self, need: Need) -> None:
        pass


class MachineKeeper:
    """Tells a provider whenever the need has changed, and again after it has failed. One asyncio loop."""

    def __init__(self, provider: MachineProvider, need: Callable[[], Need], tell_every_s: float = TELL_EVERY_S) -> None:
        self._provider, self._need, self._tell_every_s = provider, need, tell_every_s
        self.problem = ""  # why the last attempt failed

    async def keep(self) -> None:
        """For as long as it runs."""
        told: Need | None = None
        while True:
            need = self._need()
            if need == told:
                await asyncio.sleep(self._tell_every_s)
            elif await self._tell(need):
                told = need
            else:
                await asyncio.sleep(RETRY_S)

    async def _tell(self, need: Need) -> bool:
        try:
            await asyncio.to_thread(self._provider.provide, need)
            self.problem = ""
        except Exception as error:  # whatever it was, the next attempt may succeed
            self.problem = f"machines for {need.replicas} replicas: {error}"
            logs.event(log, logging.WARNING, "machines not provided", replicas=need.replicas, reason=error)
            return False
        logs.event(log, logging.INFO, "machines provided", replicas=need.replicas, unused_hosts=need.unused_hosts)
        return True


def unused(hosts: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """Of the hosts of replicas that left, those that no other replica runs on."""
    return tuple(host for host in dict.fromkeys(hosts) if host not in used)
