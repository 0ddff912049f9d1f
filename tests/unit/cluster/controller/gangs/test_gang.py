import asyncio

import pytest
import ray

from outrider.cluster.controller.gangs.gang import RankDiedError, probe_result
from outrider.workers.serving.actor import Probe

PROBE = Probe(pid=123, host="here", node_id="n", status=None)


async def answering(probe: Probe) -> Probe:
    return probe


async def failing(error: Exception) -> Probe:
    raise error


def test_a_probe_that_is_answered_brings_the_answer() -> None:
    assert asyncio.run(probe_result(answering(PROBE))) == PROBE


def test_an_actor_that_cannot_be_reached_just_now_gave_no_answer_and_did_not_die() -> None:
    assert asyncio.run(probe_result(failing(ray.exceptions.ActorUnavailableError("connection reset", None)))) is None


def test_an_actor_that_is_gone_is_a_death() -> None:
    with pytest.raises(RankDiedError):
        asyncio.run(probe_result(failing(ray.exceptions.ActorDiedError())))
