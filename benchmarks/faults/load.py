"""Concurrent streams during one episode's faults, and the outcome of each stream."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.inject import Injected, inject, seconds_until_noticed
from benchmarks.faults.oracle import Transcript, differences
from benchmarks.faults.requests import ChaosRequest
from benchmarks.faults.schedule import Episode, Injection
from outrider import AsyncClient

EPISODE_TIMEOUT_S = 240.0
NOTICE_TIMEOUT_S = 20.0  # an engine that hangs without work is never noticed
POLL_S = 0.005
REOPEN_AFTER_S = 30.0

Baseline = dict[str, Transcript]  # by the request's name


@dataclass(slots=True)
class Stream:
    """One running request. `client`: index of the client that sends it."""

    request: ChaosRequest
    client: int
    transcript: Transcript = field(default_factory=Transcript)
    error: str = ""
    ended: bool = False

    async def run(self, client: AsyncClient) -> None:
        try:
            async for event in client.stream(self.request.prompt, params=self.request.params):
                self.transcript.add(event, time.monotonic())
        except asyncio.CancelledError:
            self.error = f"cancelled after {self.transcript.tokens} tokens: the stream hangs"
            raise
        except Exception as error:  # any error loses the stream
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.ended = True

    def problems(self, expected: Transcript) -> list[str]:
        """Empty if the stream is equal to the expected one. A stream that ended with an error is lost."""
        if self.error:
            return [f"lost: {self.error}"]
        return differences(self.transcript, expected)

    def longest_gap_after(self, at: float) -> float | None:
        """Longest time without a token after `at`, in seconds; None if the stream was not running then."""
        times = self.transcript.times
        if not times or times[0] > at or times[-1] <= at:
            return None
        return max(later - max(earlier, at) for earlier, later in itertools.pairwise(times) if later > at)


@dataclass(slots=True, kw_only=True)
class InjectionResult:
    """How the cluster and the streams reacted to a fault injected at `at`."""

    injection: Injection
    at: float
    noticed_s: float | None = None
    resumed_s: float | None = None  # the longest gap in a stream that was running


@dataclass(slots=True, kw_only=True)
class EpisodeResult:
    """`wrong`: the problems of streams that have any, by the stream's number and its request's name."""

    episode: Episode
    injections: list[InjectionResult]
    wrong: dict[str, list[str]]
    seconds: float

    @property
    def lost(self) -> int:
        return sum(any(text.startswith("lost") for text in texts) for texts in self.wrong.values())


def all_ended(streams: Sequence[Stream]) -> bool:
    return all(one.ended for one in streams)


class LoadGenerator:
    """Two clients with the gateways in opposite order, so that both gateways are used. Each episode has new clients."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._addresses = cluster.addresses
        self._injected_at = math.inf
        self.clients = self._new_clients()

    def _new_clients(self) -> list[AsyncClient]:
        return [AsyncClient(self._addresses), AsyncClient(self._addresses[::-1])]

    async def _reconnect(self, *, through_proxies: bool) -> None:
        await self.close()
        self._addresses = self._cluster.proxy_addresses if through_proxies else self._cluster.addresses
        self.clients = self._new_clients()

    async def baseline(self, requests: Sequence[ChaosRequest], concurrency: int = 4) -> Baseline:
        """The requests' outputs without faults. RuntimeError if one fails."""
        slots = asyncio.Semaphore(concurrency)

        async def run(request: ChaosRequest) -> Transcript:
            stream = Stream(request, 0)
            async with slots:
                await stream.run(self.clients[0])
            if stream.error:
                raise RuntimeError(f"{request.name}: {stream.error}")
            return stream.transcript

        transcripts = await asyncio.gather(*map(run, requests))
        return {request.name: one for request, one in zip(requests, transcripts, strict=True)}

    async def run_episode(
        self, episode: Episode, requests: Sequence[ChaosRequest], baseline: Baseline
    ) -> EpisodeResult:
        start = time.monotonic()
        chosen = [requests[(episode.first_request + n) % len(requests)] for n in range(episode.streams)]
        await self._reconnect(through_proxies=episode.needs_proxies)
        streams = [Stream(request, n % len(self.clients)) for n, request in enumerate(chosen)]
        tasks = [asyncio.create_task(one.run(self.clients[one.client])) for one in streams]
        total_tokens = sum(baseline[one.request.name].tokens for one in streams)
        self._injected_at = math.inf
        reopening = asyncio.create_task(self._reopen())
        injecting = asyncio.create_task(self._inject(episode.injections, streams, total_tokens))
        await asyncio.wait(tasks, timeout=EPISODE_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        injections = await injecting
        reopening.cancel()
        for one in injections:
            gaps = [gap for stream in streams if (gap := stream.longest_gap_after(one.at)) is not None]
            one.resumed_s = max(gaps, default=None)
        wrong = {f"{n} {one.request.name}": one.problems(baseline[one.request.name]) for n, one in enumerate(streams)}
        wrong = {name: texts for name, texts in wrong.items() if texts}
        return EpisodeResult(episode=episode, injections=injections, wrong=wrong, seconds=time.monotonic() - start)

    async def _reopen(self) -> None:
        """REOPEN_AFTER_S after the last fault: no stream can make progress while both gateways are frozen."""
        while True:
            await asyncio.sleep(1.0)
            if time.monotonic() > self._injected_at + REOPEN_AFTER_S:
                self._injected_at = math.inf
                await asyncio.to_thread(self._cluster.reopen)

    async def _inject(
        self, injections: Sequence[Injection], streams: Sequence[Stream], total_tokens: int
    ) -> list[InjectionResult]:
        """Injects each fault once its share of tokens was received and there is a process for it. Skips those still due
        when all streams have ended."""
        results: list[InjectionResult] = []
        watching: list[asyncio.Task[None]] = []
        for injection in injections:
            while sum(one.transcript.tokens for one in streams) < injection.after * total_tokens:
                if all_ended(streams):
                    break
                await asyncio.sleep(POLL_S)
            if all_ended(streams):
                break
            target = self._addresses[injection.target % len(self._addresses)]
            using_target = [client for client in self.clients if client.address == target]
            injected = await self._inject_one(injection, streams)
            if injected is None:
                break
            self._injected_at = time.monotonic()
            result = InjectionResult(injection=injection, at=self._injected_at)
            results.append(result)
            if injected.noticed is None:
                watch = self._until_clients_leave(result, using_target, target, streams)
            else:
                watch = self._until_cluster_notices(result, injected)
            watching.append(asyncio.create_task(watch))
        await asyncio.gather(*watching)
        return results

    async def _inject_one(self, injection: Injection, streams: Sequence[Stream]) -> Injected | None:
        """None if all streams ended before there was a process for it."""
        while not all_ended(streams):
            with contextlib.suppress(ProcessLookupError):  # the process has just ended
                injected = await asyncio.to_thread(inject, self._cluster, injection.fault, injection.target)
                if injected is not None:
                    return injected
            await asyncio.sleep(0.1)
        return None

    async def _until_cluster_notices(self, result: InjectionResult, injected: Injected) -> None:
        result.noticed_s = await asyncio.to_thread(seconds_until_noticed, injected, NOTICE_TIMEOUT_S)

    async def _until_clients_leave(
        self, result: InjectionResult, clients: Sequence[AsyncClient], target: str, streams: Sequence[Stream]
    ) -> None:
        """Measures when one of the clients that used the faulty gateway switches to another gateway."""
        while time.monotonic() < result.at + NOTICE_TIMEOUT_S and not all_ended(streams):
            if any(client.address != target for client in clients):
                result.noticed_s = time.monotonic() - result.at
                return
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
