"""The interface of machine providers, and the task that reports the required machines to one."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.types import logs

log = logging.getLogger("outrider.machines")
CHECK_EVERY_S = 1.0
RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The number of replicas that need machines, including draining ones, and hosts that no replica uses any more."""

    replicas: int
    unused_hosts: tuple[str, ...] = ()


class MachineProvider(Protocol):
    """Blocking; called from a thread, one call at a time."""

    def provide(self, need: Need) -> None:
        """Provides the machines, or starts to. Raises OutriderError if it cannot."""
        ...


class RayPlacement:
    """Does nothing: Ray's autoscaler adds nodes for pending placement groups and removes idle nodes."""

    def provide(self, need: Need) -> None:
        pass


class MachineUpdater:
    """Calls a provider when the need changes, and retries after a failure. One asyncio loop."""

    def __init__(
        self, provider: MachineProvider, need: Callable[[], Need], check_every_s: float = CHECK_EVERY_S
    ) -> None:
        self._provider, self._need, self._check_every_s = provider, need, check_every_s
        self.problem = ""  # why the last attempt failed

    async def run(self) -> None:
        """Runs until cancelled."""
        provided: Need | None = None
        while True:
            need = self._need()
            if need == provided:
                await asyncio.sleep(self._check_every_s)
            elif await self._provide_machines(need):
                provided = need
            else:
                await asyncio.sleep(RETRY_S)

    async def _provide_machines(self, need: Need) -> bool:
        try:
            await asyncio.to_thread(self._provider.provide, need)
            self.problem = ""
        except Exception as error:  # of any kind: the next attempt may succeed
            self.problem = f"machines for {need.replicas} replicas: {error}"
            logs.event(log, logging.WARNING, "machines not provided", replicas=need.replicas, reason=error)
            return False
        logs.event(log, logging.INFO, "machines provided", replicas=need.replicas, unused_hosts=need.unused_hosts)
        return True


def unused(hosts: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """The hosts of removed replicas that no other replica uses."""
    return tuple(host for host in dict.fromkeys(hosts) if host not in used)
