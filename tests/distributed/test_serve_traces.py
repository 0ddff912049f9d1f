"""`outrider serve` with a collector: a request's spans from the processes that it went through, and their log lines."""

import json
import os
import signal
import tempfile
from pathlib import Path

from collector import attributes, collecting
from distributed.served import Outrider

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def lines_of(request_id: str, logs: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in logs.splitlines() if line.startswith("{") and request_id in line]


def logs_of_ranks() -> str:
    """What the ranks of the Ray that this process started wrote."""
    (session,) = Path(tempfile.gettempdir()).glob(f"outrider-ray-{os.getpid()}-*")
    return "\n".join(path.read_text() for path in (session / "session_latest" / "logs").glob("worker-*.err"))


def test_a_request_is_traced_through_gateway_and_leader_and_found_in_both_their_logs(
    ray_address: str, name: str
) -> None:
    with collecting() as collector:
        options = ("--set", f"otlp_endpoint={collector.address}", "--set", "kv_cache_memory_bytes=67108864")
        options += ("--port", "0", "--http-port", "0", "--ray-address", ray_address, "--name", name)
        run = Outrider("--log-level", "info", "serve", *options)
        address = run.wait_until_ready()
        environment = {"TRACEPARENT": f"00-{TRACE}-{SPAN}-01"}
        asked = Outrider(
            "generate", "def f(", "--address", address, "--max-tokens", "8", "--json", environment=environment
        )
        assert asked.finish() == 0, asked.errors
        request_id = json.loads(asked.output[0])["request_id"]
        (gateway,) = collector.wait_for("outrider.v1.InferenceService/Generate")
        (engine,), _ = collector.wait_for("engine"), collector.wait_for("decode")
        of_rank = lines_of(request_id, logs_of_ranks())
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(within_s=40) == 0, run.errors

    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}
    assert gateway.parent_span_id.hex() == SPAN
    assert engine.parent_span_id == gateway.span_id
    assert attributes(engine)["outrider.replica"] == attributes(gateway)["outrider.replica"] == "r0"
    assert attributes(engine)["gen_ai.usage.output_tokens"] == 8
    of_gateway = lines_of(request_id, "".join(run.errors))
    assert [line["event"] for line in of_gateway] == ["request accepted", "request ended"]
    assert [(line["event"], line["rank"]) for line in of_rank] == [("request ended", 0)]
    for line in (*of_gateway, *of_rank):
        assert (line["trace_id"], line["replica"], line["generation"]) == (TRACE, "r0", 1)
