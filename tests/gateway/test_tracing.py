"""Traces through a gateway: what is passed on, what logs say, and what a collector hears."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from collector import Collector, attributes, collecting
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens
from gateway.test_resumption import another, begun, ready_replicas
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.client.async_client import AsyncClient
from outrider.workers.engine.handle import Deliver
from outrider.workers.serving.observability.request_journal import RequestJournal
from outrider.workers.serving.observability.request_times import RequestTimes, TimedEngine
from outrider.workers.serving.observability.tracing import open_tracing
from outrider.workers.serving.rpc.service import EngineServer
from outrider.workers.types import logs
from outrider.workers.types.requests.request import Request

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT, STATE = f"00-{TRACE}-{SPAN}-01", "vendor=1"
GENERATE = "outrider.v1.InferenceService/Generate"


async def trace_of(cluster: Cluster, *metadata: tuple[str, str]) -> str:
    """The trace's id that a call came back with, once it is over."""
    call = cluster.inference.Generate(tokens(5, stopping=stopping(max_tokens=2)), metadata=metadata)
    returned = dict(await call.initial_metadata())["traceparent"]
    await rest(call)
    assert cluster.engine.submitted[-1].trace is not None
    assert cluster.engine.submitted[-1].trace.parent == returned
    return returned.split("-")[1]


def test_a_trace_goes_to_the_replica_and_back_to_the_client(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            assert await trace_of(cluster, ("traceparent", PARENT), ("tracestate", STATE)) == TRACE

            trace = cluster.engine.submitted[0].trace
            assert trace is not None
            assert (trace.parent, trace.state) == (PARENT, STATE)

    asyncio.run(scenario())


@pytest.mark.parametrize("parent", ["", "00-nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"])
def test_a_malformed_parent_begins_a_new_trace_without_its_state(model: Path, parent: str) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            sent = (("traceparent", parent), ("tracestate", STATE))
            drawn = {await trace_of(cluster, *sent), await trace_of(cluster, *sent), await trace_of(cluster)}

            assert len(drawn) == 3
            assert TRACE not in drawn
            assert all(request.trace is not None and not request.trace.state for request in cluster.engine.submitted)

    asyncio.run(scenario())


def test_a_refused_call_comes_back_with_its_trace_too(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            call = cluster.inference.Generate(pb.GenerateRequest(), metadata=(("traceparent", PARENT),))
            with pytest.raises(grpc.aio.AioRpcError, match="prompt"):
                await rest(call)

            assert dict(await call.initial_metadata())["traceparent"] == PARENT

    asyncio.run(scenario())


def test_a_request_that_goes_on_elsewhere_stays_in_its_trace_and_every_line_names_it(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=10_000)) as cluster:
            other = FakeEngine(max_model_len=10_000)
            async with another(cluster, other):
                await eventually(lambda: ready_replicas(cluster) == 2)
                cluster.engine.stall_after(10)
                client = AsyncClient(cluster.address)
                answer = asyncio.create_task(
                    client.generate(
                        token_ids=[5], max_tokens=60, request_id="one", traceparent=PARENT, tracestate=STATE
                    )
                )
                await eventually(lambda: bool(cluster.engine.submitted))
                await asyncio.to_thread(cluster.leader.stop)
                assert len((await answer).token_ids) == 60
                await client.close()

                assert [(r.trace.parent, r.trace.state) for r in other.submitted if r.trace] == [(PARENT, STATE)]

    with caplog.at_level(logging.INFO, logger="outrider"):
        asyncio.run(scenario())

    lines = [json.loads(logs.JsonFormatter().format(record)) for record in caplog.records]
    own = [line for line in lines if line["event"].startswith("request ")]
    assert [line["event"] for line in own] == ["request accepted", "request moved", "request ended"]
    assert {(line["request_id"], line["trace_id"]) for line in own} == {("one", TRACE)}
    places = [(line["replica"], line["generation"]) for line in own if "replica" in line]
    assert places == [("r0", 1), ("r1", 1)]


def test_a_client_refuses_a_parent_that_is_none(model: Path) -> None:
    async def scenario() -> None:
        client = AsyncClient("127.0.0.1:9")
        with pytest.raises(InvalidRequestError, match="traceparent must be in W3C"):
            await client.generate("go", traceparent="00-nonsense")
        await client.close()

    asyncio.run(scenario())


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with collecting() as one:
        yield one


class BeginningEngine(FakeEngine):
    """Says when a request has its first round, as the real one does, and a little later."""

    on_begin: Callable[[Sequence[str]], None]

    def submit(self, request: Request, deliver: Deliver) -> None:
        time.sleep(0.003)
        self.on_begin([request.request_id])
        super().submit(request, deliver)


@contextlib.asynccontextmanager
async def traced(model: Path, endpoint: str, **engines: object) -> AsyncIterator[Cluster]:
    """A cluster whose replica r9 keeps a journal, as a leader does."""
    journal = RequestJournal(open_tracing(endpoint, "outrider-replica"), "r9", 3)
    times = RequestTimes(on_end=journal.ended)
    journal.start()
    engine = BeginningEngine(**engines)
    engine.on_begin = times.scheduled
    leader = EngineServer(TimedEngine(engine, times))
    async with running(model, ready=False, otlp_endpoint=endpoint) as cluster:
        address = f"127.0.0.1:{await asyncio.to_thread(leader.start)}"
        await cluster.controller.publish(("r9", 3, address))
        await eventually(lambda: cluster.gateway.ready)
        yield dataclasses.replace(cluster, engine=engine)
    await asyncio.to_thread(leader.stop)
    engine.close()
    await asyncio.to_thread(journal.close)


def test_a_collector_hears_of_the_request_at_the_gateway_and_within_it_of_the_replicas_part(
    model: Path, collector: Collector
) -> None:
    async def scenario() -> None:
        async with traced(model, collector.address, per_round=lambda given: 3, round_s=0.02) as cluster:
            fields = {"sampling": pb.SamplingParameters(top_k=7, seed=4), "stopping": stopping(max_tokens=7)}
            call = cluster.inference.Generate(
                tokens(5, 6, request_id="one", **fields), metadata=(("traceparent", PARENT), ("tracestate", STATE))
            )
            await rest(call)

    asyncio.run(scenario())

    (gateway,), (replica,) = collector.wait_for(GENERATE), collector.wait_for("engine")
    (prefill,), (decode,) = collector.wait_for("prefill"), collector.wait_for("decode")
    assert {service for service, _ in collector.spans} == {"outrider-gateway", "outrider-replica"}
    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}
    assert gateway.parent_span_id.hex() == SPAN
    assert gateway.trace_state == STATE
    assert replica.parent_span_id == gateway.span_id
    assert prefill.parent_span_id == decode.parent_span_id == replica.span_id
    assert gateway.start_time_unix_nano <= replica.start_time_unix_nano < prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano == replica.end_time_unix_nano <= gateway.end_time_unix_nano
    said = attributes(gateway)
    assert said["gen_ai.request.model"] == "small"
    assert (said["gen_ai.operation.name"], said["gen_ai.response.id"]) == ("text_completion", "one")
    assert (said["gen_ai.request.top_k"], said["gen_ai.request.max_tokens"], said["gen_ai.request.seed"]) == (7, 7, 4)
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (2, 7)
    assert (said["outrider.rounds"], said["outrider.drafted"], said["outrider.accepted"]) == (3, 7, 4)
    assert (said["outrider.replica"], said["outrider.generation"], said["outrider.moves"]) == ("r9", 3, 0)
    seconds = (gateway.end_time_unix_nano - gateway.start_time_unix_nano) / 1e9
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < seconds
    inside = attributes(replica)
    assert (inside["outrider.rounds"], inside["gen_ai.usage.output_tokens"], inside["outrider.replica"]) == (3, 7, "r9")
    queued = (prefill.start_time_unix_nano - replica.start_time_unix_nano) / 1e9
    assert said["outrider.queued_s"] == inside["outrider.queued_s"] == pytest.approx(queued, abs=1e-6)
    assert queued > 0.003
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI")}
    assert {name for name in (*said, *inside) if not name.startswith("outrider.")} <= known


def test_what_fails_is_an_error_to_the_collector_and_what_is_refused_a_span_without_a_replica(
    model: Path, collector: Collector
) -> None:
    async def scenario() -> None:
        async with traced(model, collector.address) as cluster:
            cluster.engine.stall_after(3)
            call, _ = await begun(cluster, request_id="lost")
            cluster.engine.fail("rank 1 died")
            await cluster.controller.end("r9", 3, "rank 1 died")
            assert (await rest(call))[-1].error.message
            with pytest.raises(grpc.aio.AioRpcError):
                await cluster.events(tokens(5, request_id="late"))

    asyncio.run(scenario())

    spans = {attributes(span)["outrider.status"]: span for span in collector.wait_for(GENERATE, 2)}
    assert spans.keys() == {"error", "unavailable"}
    assert all(attributes(span)["error.type"] == status for status, span in spans.items())
    assert all(span.status.code == span.status.STATUS_CODE_ERROR for span in spans.values())
    assert "outrider.replica" not in attributes(spans["unavailable"])
    (engine,) = collector.wait_for("engine")
    assert engine.status.message == "rank 1 died"


def test_a_caller_that_does_not_sample_is_not_recorded_and_its_trace_goes_on(model: Path, collector: Collector) -> None:
    async def scenario() -> None:
        async with traced(model, collector.address) as cluster:
            for flags in ("00", "01"):
                call = cluster.inference.Generate(
                    tokens(5, stopping=stopping(max_tokens=2)),
                    metadata=(("traceparent", f"00-{TRACE}-{SPAN}-{flags}"),),
                )
                assert dict(await call.initial_metadata())["traceparent"].split("-")[1] == TRACE
                await rest(call)

    asyncio.run(scenario())

    collector.wait_for(GENERATE)
    assert len(collector.named(GENERATE)) == len(collector.named("engine")) == 1


def test_the_replicas_line_of_a_request_says_the_clients_name_for_it_and_where_it_ran(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with traced(model, "", per_round=lambda given: 3, round_s=0.02) as cluster:
            request = tokens(5, request_id="one", stopping=stopping(max_tokens=7))
            await rest(cluster.inference.Generate(request, metadata=(("traceparent", PARENT),)))

    with caplog.at_level(logging.INFO, logger="outrider.requests"):
        asyncio.run(scenario())

    formatter = logs.JsonFormatter({"replica": "r9", "generation": 3})
    (line,) = [json.loads(formatter.format(r)) for r in caplog.records if r.name == "outrider.requests"]
    assert (line["event"], line["request_id"], line["trace_id"]) == ("request ended", "one", TRACE)
    assert (line["replica"], line["generation"], line["reason"]) == ("r9", 3, "length")
    assert (line["completion_tokens"], line["rounds"], line["drafted"], line["accepted"]) == (7, 3, 7, 4)
    assert 0 < line["queued_s"] <= line["time_to_first_token_s"] <= line["seconds"]
