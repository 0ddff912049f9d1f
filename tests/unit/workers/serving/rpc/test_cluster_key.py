"""The key that a cluster's own services ask for: nobody gets anything from a leader without it, on any method."""

import asyncio
import json
import os
from pathlib import Path

import grpc
import pytest
from fakes import FakeController, FakeEngine
from gateway.every_rpc import CONTROLLER, LEADER, statuses

from outrider.cluster.client.base import PLAIN
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.gateway.routing.controller_link import ControllerLink
from outrider.workers.config import EngineConfig
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.rpc.cluster_key import HEADER, draw_key, key_metadata, read_key
from outrider.workers.serving.rpc.leader_client import RemoteEngine
from outrider.workers.serving.rpc.service import EngineServer, LeaderEndpoint
from outrider.workers.types.errors import EngineStoppedError, OutriderError

KEY = draw_key()
WRONG = {
    "none": (),
    "another": key_metadata(draw_key()),
    "the start of it": ((HEADER, KEY[:-1]),),
    "more than it": ((HEADER, KEY + "x"),),
    "as a bearer token": (("authorization", f"Bearer {KEY}"),),
}


@pytest.mark.parametrize("who", WRONG)
def test_without_the_key_a_leader_and_a_controller_answer_nothing(tmp_path: Path, who: str) -> None:
    engine = FakeEngine()
    leader = EngineServer(engine, key=KEY)

    async def scenario() -> None:
        controller = FakeController(str(tmp_path), KEY)
        await controller.start()
        at_leader = await statuses(f"127.0.0.1:{leader.start()}", LEADER, PLAIN, WRONG[who])
        at_controller = await statuses(controller.address, CONTROLLER, PLAIN, WRONG[who])
        await controller.stop()
        got = {**at_leader, **at_controller}
        assert set(got.values()) == {grpc.StatusCode.UNAUTHENTICATED}, got

    asyncio.run(scenario())
    leader.stop()
    engine.close()


def test_a_client_with_the_key_is_served_and_one_without_hears_why() -> None:
    engine = FakeEngine()
    leader = LeaderEndpoint(host="127.0.0.1", key=KEY).serve(engine)
    address = f"127.0.0.1:{leader.start()}"

    with_key = RemoteEngine.connect(address, key=KEY)
    assert with_key.info.fingerprint == "feedbeef"
    with_key.close()
    with pytest.raises(EngineStoppedError, match="give its cluster key"):
        RemoteEngine.connect(address)
    leader.stop()
    engine.close()


def test_a_gateway_whose_key_is_wrong_tells_its_clients_that_the_fault_is_not_theirs(tmp_path: Path) -> None:
    async def scenario() -> None:
        controller = FakeController(str(tmp_path), KEY)
        await controller.start()
        link = ControllerLink(controller.address, draw_key())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await link.get_model()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await link.close()
        await controller.stop()

    asyncio.run(scenario())


def test_a_leader_takes_the_first_free_port_of_its_range_and_says_when_there_is_none() -> None:
    engine = FakeEngine()
    first = EngineServer(engine)
    start = first.start()
    servers = [LeaderEndpoint(host="127.0.0.1", ports=(start, start + 20)).serve(engine)]
    assert start < servers[0].start() <= start + 20

    with pytest.raises(OutriderError, match=f"cannot listen on 127.0.0.1:{start}:"):
        EngineServer(engine, port=start).start()
    for server in (first, *servers):
        server.stop()
    engine.close()


def test_a_key_is_read_from_a_file_or_standard_input_and_must_be_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(str(file)) == KEY
    for text in ("", "short", "x" * 40 + "\ny", "ü" * 40):
        file.write_text(text)
        with pytest.raises(OutriderError, match="one line of at least 32 printable characters") as caught:
            read_key(str(file))
        assert "short" not in str(caught.value)
    with pytest.raises(OutriderError, match="cannot read the cluster key"):
        read_key(str(tmp_path / "absent"))

    reading, writing = os.pipe()
    os.write(writing, f"{KEY}\nrest".encode())
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert read_key("-") == KEY
        assert os.read(0, 10) == b"rest"
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, reading, writing):
            os.close(descriptor)


def test_what_is_printed_of_a_rank_or_a_charge_has_no_key() -> None:
    spec = RankSpec(engine=EngineConfig(), layer_splits=((0, 1),), service_key=KEY, service_ports=(5, 6))

    assert KEY not in repr(spec)
    assert RankSpec.from_json(spec.to_json()) == spec
    assert KEY in json.loads(spec.to_json())["service_key"]
    assert "key" not in {
        field for field in ClusterSpec.__dataclass_fields__ if ClusterSpec.__dataclass_fields__[field].repr
    }
    assert KEY not in repr(LeaderEndpoint(host="h", key=KEY))
