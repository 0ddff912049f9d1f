"""Faults lose no stream and change no output: real engines on a real Ray, real gateways, faults while streams run.

`benchmarks/chaos.py` runs the same for longer.
"""

import asyncio
import re

import pytest

from benchmarks.common.prompts import prompts
from benchmarks.faults.cluster import Cluster
from benchmarks.faults.cuts import cut_everywhere
from benchmarks.faults.load import Baseline, LoadGenerator
from benchmarks.faults.poison import run_beside_poison
from benchmarks.faults.requests import PARAMETER_SETS, chaos_requests
from benchmarks.faults.schedule import Episode, Fault, Injection

REQUESTS = chaos_requests([text[:160] for text in prompts("code", 2)], max_tokens=24)
HUNG = re.compile(r"rank 1 \(stage 1, .*\) hangs: no progress for .* in round \d+")
STREAMS = 2 * len(PARAMETER_SETS)


@pytest.fixture(scope="module")
def baseline(cluster: Cluster) -> Baseline:
    """Every request's output without faults."""

    async def run() -> Baseline:
        load = LoadGenerator(cluster)
        found = await load.baseline(REQUESTS)
        await load.close()
        return found

    cluster.restore()
    return asyncio.run(run())


@pytest.mark.parametrize(
    "faults",
    [
        (Fault.RANK_KILL, Fault.GATEWAY_STOP),
        (Fault.GATEWAY_KILL, Fault.RANK_HANG),
        (Fault.CONTROLLER_KILL, Fault.GATEWAY_DRAIN, Fault.LEADER_KILL),
    ],
    ids=lambda faults: " and ".join(fault.value for fault in faults),
)
def test_streams_survive_faults_with_the_same_output(
    cluster: Cluster, baseline: Baseline, faults: tuple[Fault, ...]
) -> None:
    injections = tuple(Injection(fault=fault, target=0, after=0.1 + 0.1 * n) for n, fault in enumerate(faults))
    episode = Episode(number=0, streams=STREAMS, first_request=0, injections=injections)

    async def scenario() -> dict[str, list[str]]:
        load = LoadGenerator(cluster)
        result = await load.run_episode(episode, REQUESTS, baseline)
        await load.close()
        return result.wrong

    assert asyncio.run(scenario()) == {}
    cluster.restore()
    if Fault.RANK_HANG in faults:
        assert any(HUNG.search(ending) for ending in cluster.last_endings())


def test_streams_that_are_cut_after_every_message_have_the_same_output(cluster: Cluster) -> None:
    async def scenario() -> None:
        load = LoadGenerator(cluster)
        found = await cut_everywhere(cluster, load, REQUESTS[: len(PARAMETER_SETS)], most_cuts=1000)
        await load.close()

        assert found["streams"] == len(PARAMETER_SETS)
        assert found["cuts"] > 10 * len(PARAMETER_SETS)
        assert found["changed"] == 0

    asyncio.run(scenario())


def test_a_request_that_kills_every_engine_is_stopped_after_two_and_the_others_finish(cluster: Cluster) -> None:
    async def scenario() -> None:
        load = LoadGenerator(cluster)
        before = cluster.generations()
        found = await run_beside_poison(cluster, load, REQUESTS, bystanders=40)
        await load.close()
        after = cluster.generations()

        assert found["finished"] == found["bystanders"]
        assert found["changed"] == 0
        assert "2 replicas in a row were lost" in found["poison_error"]
        assert before is not None
        assert after is not None
        assert sum(after.values()) - sum(before.values()) == 2

    asyncio.run(scenario())
