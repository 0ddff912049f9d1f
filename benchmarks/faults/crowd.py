"""Many streams at once through one episode's faults, and what became of each."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from faults.cluster import Cluster
from faults.oracle import Heard, differences
from faults.questions import Question
from faults.schedule import Blow, Episode
from faults.strikes import seconds_until, strike

from outrider import AsyncClient
from outrider.cluster.generation import Event
from outrider.workers.types.errors import OutriderError

HUNG_S = 240.0
NOTICED_S = 20.0  # what nobody met in this time, as an engine that hangs without work
LOOK_EVERY_S = 0.005
FROZEN_S = 30.0


@dataclass(slots=True)
class Stream:
    """One request on its way; `client` is by number."""

    question: Question
    client: int
    heard: Heard = field(default_factory=Heard)
    error: str = ""
    ended: bool = False

    async def run(self, client: AsyncClient) -> None:
        try:
            async for event in client.stream(self.question.prompt, params=self.question.params):
                self.hear(event)
        except OutriderError as error:
            self.error = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            self.error = f"it hangs after {self.heard.tokens} tokens"
        self.ended = True

    def hear(self, event: Event) -> None:
        self.heard.add(event, time.monotonic())

    def wrong(self, twin: Heard) -> list[str]:
        """What is not as it should be; a stream that did not come to its end is lost."""
        if self.error:
            return [f"lost: {self.error}"]
        return differences(self.heard, twin)

    def silence_after(self, at: float) -> float | None:
        """The longest that it waited for a token from `at` on; None unless it was under way then."""
        times = self.heard.times
        if not times or times[0] > at or times[-1] <= at:
            return None
        return max(later - max(sooner, at) for sooner, later in itertools.pairwise(times) if later > at)


@dataclass(slots=True, kw_only=True)
class Struck:
    """What followed a blow; seconds."""

    blow: Blow
    at: float
    noticed_s: float | None = None
    resumed_s: float | None = None  # the longest silence of a stream that was under way


@dataclass(slots=True, kw_only=True)
class Result:
    """An episode's."""

    episode: Episode
    struck: list[Struck]
    wrong: dict[str, list[str]]  # by the stream's number and question
    seconds: float

    @property
    def lost(self) -> int:
        return sum(any(text.startswith("lost") for text in texts) for texts in self.wrong.values())


def over(streams: Sequence[Stream]) -> bool:
    return all(one.ended for one in streams)


class Crowd:
    """Two clients, each of which asks another gateway first; new ones in each episode, so that both gateways work."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._addresses = cluster.addresses
        self.clients = self._new_clients()

    def _new_clients(self) -> list[AsyncClient]:
        return [AsyncClient(self._addresses), AsyncClient(self._addresses[::-1])]

    async def _connect_anew(self, *, by_wire: bool) -> None:
        await self.close()
        self._addresses = self._cluster.wires if by_wire else self._cluster.addresses
        self.clients = self._new_clients()

    async def answers(self, questions: Sequence[Question], at_once: int = 4) -> dict[str, Heard]:
        """Undisturbed. RuntimeError if one fails."""
        places = asyncio.Semaphore(at_once)

        async def answer(question: Question) -> Heard:
            stream = Stream(question, 0)
            async with places:
                await stream.run(self.clients[0])
            if stream.error:
                raise RuntimeError(f"{question.name}: {stream.error}")
            return stream.heard

        heard = await asyncio.gather(*map(answer, questions))
        return {question.name: one for question, one in zip(questions, heard, strict=True)}

    async def live_through(self, episode: Episode, questions: Sequence[Question], twins: dict[str, Heard]) -> Result:
        began = time.monotonic()
        asked = [questions[(episode.first + n) % len(questions)] for n in range(episode.streams)]
        await self._connect_anew(by_wire=episode.cuts_wires)
        streams = [Stream(question, n % len(self.clients)) for n, question in enumerate(asked)]
        tasks = [asyncio.create_task(one.run(self.clients[one.client])) for one in streams]
        expected = sum(twins[one.question.name].tokens for one in streams)
        thawing = asyncio.create_task(self._thaw())
        striking = asyncio.create_task(self._strike(episode.blows, streams, expected))
        await asyncio.wait(tasks, timeout=HUNG_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        struck = await striking
        thawing.cancel()
        for one in struck:
            silences = [silence for stream in streams if (silence := stream.silence_after(one.at)) is not None]
            one.resumed_s = max(silences, default=None)
        wrong = {f"{n} {one.question.name}": one.wrong(twins[one.question.name]) for n, one in enumerate(streams)}
        wrong = {name: texts for name, texts in wrong.items() if texts}
        return Result(episode=episode, struck=struck, wrong=wrong, seconds=time.monotonic() - began)

    async def _thaw(self) -> None:
        """Now and then: with both gateways frozen nobody could go on."""
        while True:
            await asyncio.sleep(FROZEN_S)
            self._cluster.thaw()

    async def _strike(self, blows: Sequence[Blow], streams: Sequence[Stream], expected: int) -> list[Struck]:
        """Each blow at its time; those that the streams' end was sooner than are left out."""
        struck: list[Struck] = []
        watching: list[asyncio.Task[None]] = []
        for blow in blows:
            while sum(one.heard.tokens for one in streams) < blow.after * expected and not over(streams):
                await asyncio.sleep(LOOK_EVERY_S)
            if over(streams):
                break
            before = [client.address for client in self.clients]
            noticed = await asyncio.to_thread(strike, self._cluster, blow.fault, blow.target)
            one = Struck(blow=blow, at=time.monotonic())
            struck.append(one)
            if noticed is None:
                target = self._addresses[blow.target % len(self._addresses)]
                watched = [n for n, address in enumerate(before) if address == target]
                watching.append(asyncio.create_task(self._clients_leave(one, watched, target, streams)))
            else:
                watching.append(asyncio.create_task(self._cluster_notices(one, noticed)))
        await asyncio.gather(*watching)
        return struck

    async def _cluster_notices(self, struck: Struck, noticed: Callable[[], bool]) -> None:
        struck.noticed_s = await asyncio.to_thread(seconds_until, noticed, NOTICED_S)

    async def _clients_leave(
        self, struck: Struck, watched: Sequence[int], target: str, streams: Sequence[Stream]
    ) -> None:
        """Until a client that asked the struck gateway asks another; nothing is measured where nobody asked it."""
        while time.monotonic() < struck.at + NOTICED_S and not over(streams):
            if any(self.clients[n].address != target for n in watched):
                struck.noticed_s = time.monotonic() - struck.at
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
