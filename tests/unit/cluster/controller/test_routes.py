import asyncio

import pytest

from outrider.cluster.controller.routes import Ending, Route, RouteTable, Table

ROUTE = Route(replica="r0", generation=1, address="127.0.0.1:9")
ENDING = Ending(replica="r0", generation=1, reason="rank 1 died")


async def first(table: RouteTable) -> Table:
    return await anext(aiter(table.watch()))


def test_who_begins_to_watch_is_told_the_table_at_once() -> None:
    async def scenario() -> None:
        table = RouteTable()
        assert (await first(table)).routes == ()

        await table.publish(ROUTE)
        assert (await first(table)).routes == (ROUTE,)

    asyncio.run(scenario())


def test_who_watches_hears_of_every_change_and_of_nothing_else() -> None:
    async def scenario() -> None:
        table = RouteTable()
        watch = aiter(table.watch())
        versions = [(await anext(watch)).version]

        await table.publish(ROUTE)
        versions.append((await anext(watch)).version)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)

        assert versions == sorted(set(versions))

    asyncio.run(scenario())


def test_an_ended_replica_loses_its_route_and_its_reason_is_told_once() -> None:
    async def scenario() -> None:
        table = RouteTable()
        watch = aiter(table.watch())
        await anext(watch)
        await table.publish(ROUTE)
        await table.withdraw(ENDING)

        ended = await anext(watch)
        assert (ended.routes, ended.ended) == ((), (ENDING,))

        await table.drain()
        drained = await anext(watch)
        assert (drained.ended, drained.draining) == ((), True)

    asyncio.run(scenario())


def test_a_replica_that_is_retired_loses_its_route_without_an_ending() -> None:
    async def scenario() -> None:
        table = RouteTable()
        watch = aiter(table.watch())
        await anext(watch)
        await table.publish(ROUTE)
        await table.retire("r0", pending=1)

        retired = await anext(watch)
        assert (retired.routes, retired.ended, retired.pending) == ((), (), 1)

    asyncio.run(scenario())


def test_an_ending_and_the_replicas_to_come_are_told_in_one_table() -> None:
    async def scenario() -> None:
        table = RouteTable()
        await table.publish(ROUTE)
        watch = aiter(table.watch())
        await anext(watch)
        await table.withdraw(ENDING, pending=2)
        await table.expect(2)

        told = await anext(watch)
        assert (told.ended, told.pending) == ((ENDING,), 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)

    asyncio.run(scenario())


def test_a_slow_watcher_misses_tables_and_no_ending() -> None:
    async def scenario() -> None:
        table = RouteTable()
        watch = aiter(table.watch())
        await anext(watch)
        endings = [Ending(replica="r0", generation=number, reason=str(number)) for number in range(5)]
        for ending in endings:
            await table.withdraw(ending)

        assert (await anext(watch)).ended == tuple(endings)

    asyncio.run(scenario())


def test_two_watchers_hear_the_same() -> None:
    async def scenario() -> None:
        table = RouteTable()
        watches = [aiter(table.watch()) for _ in range(2)]
        for watch in watches:
            await anext(watch)
        waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
        await asyncio.sleep(0.01)
        await table.publish(ROUTE)

        one, other = await asyncio.gather(*waiting)
        assert one == other

    asyncio.run(scenario())
