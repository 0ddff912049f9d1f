"""No request lost, none changed: real engines on a real Ray, real gateways, and faults in the middle of streams.

`benchmarks/chaos.py` does the same for as long as it is told to.
"""

import asyncio
import re

import pytest
from common import prompts
from faults.cluster import Cluster
from faults.crowd import Crowd
from faults.cuts import cut_everywhere
from faults.oracle import Heard
from faults.poison import beside_poison
from faults.questions import PARAMETER_SETS, questions
from faults.schedule import Blow, Episode, Fault

QUESTIONS = questions([text[:160] for text in prompts("code", 2)], max_tokens=24)
HUNG = re.compile(r"rank 1 \(stage 1, .*\) hangs: no progress for .* in round \d+")
STREAMS = 2 * len(PARAMETER_SETS)

Twins = dict[str, Heard]


@pytest.fixture(scope="module")
def twins(cluster: Cluster) -> Twins:
    """What every question is answered while nothing happens."""

    async def ask() -> Twins:
        crowd = Crowd(cluster)
        answers = await crowd.answers(QUESTIONS)
        await crowd.close()
        return answers

    cluster.mend()
    return asyncio.run(ask())


@pytest.mark.parametrize(
    "faults",
    [
        (Fault.RANK_KILL, Fault.GATEWAY_STOP),
        (Fault.GATEWAY_KILL, Fault.RANK_HANG),
        (Fault.CONTROLLER_KILL, Fault.GATEWAY_DRAIN, Fault.LEADER_KILL),
    ],
    ids=lambda faults: " and ".join(fault.value for fault in faults),
)
def test_streams_live_through_faults_and_are_what_they_would_have_been(
    cluster: Cluster, twins: Twins, faults: tuple[Fault, ...]
) -> None:
    blows = tuple(Blow(fault=fault, target=0, after=0.1 + 0.1 * n) for n, fault in enumerate(faults))
    episode = Episode(number=0, streams=STREAMS, first=0, blows=blows)

    async def scenario() -> dict[str, list[str]]:
        crowd = Crowd(cluster)
        result = await crowd.live_through(episode, QUESTIONS, twins)
        await crowd.close()
        return result.wrong

    assert asyncio.run(scenario()) == {}
    cluster.mend()
    if Fault.RANK_HANG in faults:
        assert any(HUNG.search(ending) for ending in cluster.last_endings())


def test_streams_that_are_cut_after_every_message_are_what_they_would_have_been(cluster: Cluster) -> None:
    async def scenario() -> None:
        crowd = Crowd(cluster)
        found = await cut_everywhere(cluster, crowd, QUESTIONS[: len(PARAMETER_SETS)], most_cuts=1000)
        await crowd.close()

        assert found["streams"] == len(PARAMETER_SETS)
        assert found["cuts"] > 10 * len(PARAMETER_SETS)
        assert found["changed"] == 0

    asyncio.run(scenario())


def test_a_request_that_kills_every_engine_ends_two_and_those_beside_it_finish(cluster: Cluster) -> None:
    async def scenario() -> None:
        crowd = Crowd(cluster)
        before = cluster.generations()
        found = await beside_poison(cluster, crowd, QUESTIONS, bystanders=40)
        await crowd.close()
        after = cluster.generations()

        assert found["finished"] == found["bystanders"]
        assert found["changed"] == 0
        assert "2 replicas in a row were lost" in found["poison_heard"]
        assert before is not None
        assert after is not None
        assert sum(after.values()) - sum(before.values()) == 2

    asyncio.run(scenario())
